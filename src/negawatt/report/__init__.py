"""Reports of a plan: in the terminal (`text`) and as one self-contained page (`html`)."""

"""The meter inside other people's programs: notebooks and training loops. Each library is imported only by its file."""

"""The gateway in front of an inference server: what each request costs, and less of it under a latency promise."""

"""The only place that runs trials: a worker process under a bench that keeps time, records and resumes."""

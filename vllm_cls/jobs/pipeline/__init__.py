"""The steps of a job: rows are read ahead, answered, kept and written behind."""

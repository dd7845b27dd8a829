"""On a Ray cluster: workers for jobs over files, a class for Ray Data's pipelines, and Ray Serve.

classify_file(RayWorkers("my-classifier", num_workers=8), "reviews/*.parquet", "classified.parquet")
dataset.map_batches(BatchClassifier, fn_constructor_kwargs={"model": "my-classifier"}, concurrency=8)
"""

from .ray_data import BatchClassifier
from .workers import RayWorkers

__all__ = ["BatchClassifier", "RayWorkers"]

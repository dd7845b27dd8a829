"""Tests of vllm_cls.runtime.parallel."""

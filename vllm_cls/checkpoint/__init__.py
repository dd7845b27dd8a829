"""A checkpoint's files, read: tensors, GGUF, a PEFT adapter, what Sentence Transformers' files say."""

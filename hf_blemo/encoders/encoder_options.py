"""What may be said of an encoder in settings and configs."""

# Of an entry that names an encoder to load; the first three travel with the models trained on its features.
ENCODER_KEYS = ("model_id", "revision", "extraction", "batch_size")
# What models may run in, as torch calls it.
DTYPES = ("float32", "bfloat16", "float16")
# What resizes frames, as transformers calls it.
IMAGE_BACKENDS = ("pil", "torchvision")

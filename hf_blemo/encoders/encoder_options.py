"""What may be said of an encoder in settings and configs."""

from typing import Literal, get_args

# Of an entry that names an encoder to load; the first three travel with the models trained on its features.
ENCODER_KEYS = ("model_id", "revision", "extraction", "batch_size")
# What models may run in, as torch calls it.
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = get_args(Dtype)
# What resizes frames, as transformers calls it.
ImageBackend = Literal["pil", "torchvision"]
IMAGE_BACKENDS = get_args(ImageBackend)

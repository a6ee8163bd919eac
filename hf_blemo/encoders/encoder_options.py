"""Options of encoders in settings and configs."""

from typing import Literal, get_args

# Keys of an encoder's entry; models trained on its features keep the first three.
ENCODER_KEYS = ("model_id", "revision", "extraction", "batch_size")
# Precisions of models, by torch's names.
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = get_args(Dtype)
# Backends that resize frames, by transformers' names.
ImageBackend = Literal["pil", "torchvision"]
IMAGE_BACKENDS = get_args(ImageBackend)

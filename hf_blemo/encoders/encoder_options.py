"""Values that settings and configs may give for an encoder; importable without torch."""

from typing import Literal, get_args

# Keys of an entry that names an encoder to load; the first three travel with the models trained on its features.
ENCODER_KEYS = ("model_id", "revision", "extraction", "batch_size")
# Precision of models, in torch's names.
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES = get_args(Dtype)
# Backends that resize frames, in transformers' names.
ImageBackend = Literal["pil", "torchvision"]
IMAGE_BACKENDS = get_args(ImageBackend)

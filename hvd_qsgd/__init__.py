"""QSGD gradient compression for an unpatched Horovod: quantized, entropy-coded, unbiased, checked.

``hvd_qsgd.torch.QSGD`` is the ``compression=`` of Horovod's optimizers; this module has the framework-free tools.
"""

from hvd_qsgd.arrays import decode, decode_sum, encode, inspect
from hvd_qsgd.errors import QSGDError

__version__ = "0.1.0"
__all__ = ["QSGDError", "__version__", "decode", "decode_sum", "encode", "inspect"]

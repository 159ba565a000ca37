__version__ = "0.1.1"
from . import _moved # modules of version 0.1 by their old names

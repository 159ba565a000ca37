__version__ = "0.2.0"
from . import _moved # modules of version 0.1 by their old names

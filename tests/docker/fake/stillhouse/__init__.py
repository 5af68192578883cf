"""Goes before the package of this name in an image: its command is a stand-in, everything else is the real one."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)

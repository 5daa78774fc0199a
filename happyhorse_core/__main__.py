"""``python -m happyhorse_core``."""

import sys

from .cli import main

sys.exit(main())

"""``python -m kvant`` is ``kvant``."""

import sys

from kvant.cli.main import main

sys.exit(main())

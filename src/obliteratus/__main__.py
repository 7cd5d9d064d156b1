"""``python -m obliteratus``, which is how torchrun starts it."""

import sys

from obliteratus.cli.main import main

sys.exit(main())

import sys

from frcnn_fast.export.command import main

sys.exit(main())

import sys

from beam_pipeline.main import main

sys.exit(main())

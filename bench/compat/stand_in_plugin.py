"""A plugin for pytest: frcnn_fast stands in for mmcv's compiled half in that process."""

import frcnn_fast

frcnn_fast.stand_in_for_mmcv()

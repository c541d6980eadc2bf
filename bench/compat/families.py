"""Every family of mmdetection's models once: inference and one training step with random weights, on the processor.

A family has a process of its own: some leave settings behind, and one that ends badly ends alone.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

import frcnn_fast
from bench.compat import models
from frcnn_fast.mmcv.table import SERVED

# The folder is the family's, and the file a model of it.
FAMILIES = """
faster_rcnn/faster-rcnn_r50_fpn_1x_coco faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco
faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco mask_rcnn/mask-rcnn_r50_fpn_1x_coco
cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco
libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco
dcn/faster-rcnn_r50_fpn_dpool_1x_coco dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco
dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco double_heads/dh-faster-rcnn_r50_fpn_1x_coco
dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco gn/mask-rcnn_r50_fpn_gn-all_2x_coco
grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco groie/faste-rcnn_r50_fpn_groie_1x_coco
ms_rcnn/ms-rcnn_r50-caffe_fpn_1x_coco point_rend/point-rend_r50-caffe_fpn_ms-1x_coco
pisa/faster-rcnn_r50_fpn_pisa_1x_coco sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco
queryinst/queryinst_r50_fpn_1x_coco tridentnet/tridentnet_r50-caffe_1x_coco
detectors/detectors_cascade-rcnn_r50_1x_coco carafe/faster-rcnn_r50_fpn-carafe_1x_coco
guided_anchoring/ga-faster-rcnn_r50-caffe_fpn_1x_coco
cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco
crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman reppoints/reppoints-moment_r50_fpn_1x_coco
retinanet/retinanet_r50_fpn_1x_coco fcos/fcos_r50-caffe_fpn_gn-head_1x_coco atss/atss_r50_fpn_1x_coco
gfl/gfl_r50_fpn_1x_coco vfnet/vfnet_r50_fpn_1x_coco tood/tood_r50_fpn_1x_coco
yolo/yolov3_d53_8xb8-320-273e_coco yolox/yolox_s_8xb8-300e_coco rtmdet/rtmdet_tiny_8xb32-300e_coco
rtmdet/rtmdet-ins_tiny_8xb32-300e_coco ssd/ssd300_coco detr/detr_r50_8xb2-150e_coco
deformable_detr/deformable-detr_r50_16xb2-50e_coco dino/dino-4scale_r50_8xb2-12e_coco
ddq/ddq-detr-4scale_r50_8xb2-12e_coco mask2former/mask2former_r50_8xb2-lsj-50e_coco
solo/solo_r50_fpn_1x_coco solov2/solov2_r50_fpn_1x_coco condinst/condinst_r50_fpn_ms-poly-90k_coco_instance
yolact/yolact_r50_1xb8-55e_coco centernet/centernet_r18_8xb16-crop512-140e_coco
cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco
yolof/yolof_r50-c5_8xb8-1x_coco paa/paa_r50_fpn_1x_coco foveabox/fovea_r50_fpn_4xb4-1x_coco
ddod/ddod_r50_fpn_1x_coco dyhead/atss_r50_fpn_dyhead_1x_coco swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco
htc/htc_r50_fpn_1x_coco
""".split()  # fmt: skip


def count_calls() -> Counter[str]:
    """From now on counts the calls of what stands in for mmcv's functions."""
    import mmcv._ext

    calls: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for name, served in SERVED.items():
        setattr(mmcv._ext, name, counted(name, served.function))
    return calls


def try_family(name: str, size: tuple[int, int]) -> dict[str, Any]:
    """ "ok", or the error, of inference and of training; and what was called, how often."""
    with frcnn_fast.stand_in_for_mmcv():
        calls = count_calls()
        found: dict[str, Any] = {"config": name}
        try:
            model = models.build(name + ".py")
        except Exception as error:
            text = described(error)
            return found | {"inference": text, "training": text, "functions": {}, "seconds": [0.0, 0.0]}

        def infer() -> None:
            model.eval()
            with torch.no_grad():
                model.test_step(models.batch(size))

        def train() -> None:
            model.train()
            data = model.data_preprocessor(models.batch(size, seed=1), True)
            loss, _ = model.parse_losses(model(**data, mode="loss"))
            loss.backward()
            if not loss.isfinite():
                raise FloatingPointError(f"the loss is {float(loss)}")

        seconds = []
        for what, step in (("inference", infer), ("training", train)):
            start = time.perf_counter()
            try:
                step()
                found[what] = "ok"
            except Exception as error:
                found[what] = described(error)
            seconds.append(round(time.perf_counter() - start, 1))
        return found | {"functions": dict(sorted(calls.items())), "seconds": seconds}


def described(error: Exception) -> str:
    """One line, with the place where it happened."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({place})"


def try_all(names: Sequence[str], size: tuple[int, int]) -> list[dict[str, Any]]:
    """One process a family, forked from this one, which has imported everything."""
    with frcnn_fast.stand_in_for_mmcv():
        import mmdet.models  # noqa: F401

    fork = multiprocessing.get_context("fork")
    found = []
    for name in names:
        ours, theirs = fork.Pipe(duplex=False)
        child = fork.Process(target=lambda name=name, to=theirs: to.send(try_family(name, size)), daemon=True)
        child.start()
        theirs.close()
        try:
            entry = ours.recv()
        except EOFError:
            child.join()
            text = f"the process ended with status {child.exitcode}"
            entry = {"config": name, "inference": text, "training": text, "functions": {}, "seconds": [0.0, 0.0]}
        child.join()
        print(f"{name:<64} {entry['inference'][:90]:<4} {entry['training'][:90]}", flush=True)
        found.append(entry)
    return found

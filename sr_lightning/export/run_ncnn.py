"""Run a network in ncnn, alone in its process, which ncnn ends if it has no such layer: NAME.param IN.npy OUT.npy.

Arrays are (N, C, h, w) in float32. Neither torch nor this project is imported.
"""

import sys

import ncnn
import numpy as np


def main(param: str, images: str, results: str) -> None:
    net = ncnn.Net()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_packing_layout"):
        setattr(net.opt, option, False)
    net.opt.num_threads = 1
    if net.load_param(param) or net.load_model(param.removesuffix(".param") + ".bin"):
        sys.exit(1)
    outputs = []
    for lr in np.load(images):
        extractor = net.create_extractor()
        extractor.input("data", ncnn.Mat(lr).clone())  # a Mat does not own the array's memory
        status, sr = extractor.extract("output")
        if status:
            sys.exit(1)
        sr = sr.clone()  # nor that of the extractor
        outputs.append(np.array(sr))
    np.save(results, np.stack(outputs))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Saves a state dict with the real PyTorch in many ways; test_torch_zip runs it.

Usage: python torch_save_recipe.py ARRAYS.npz FOLDER.  The arrays are named as in the state dict;
entries with equal values under two names become one module's tensor, as the ports' aliases are.
"""

from __future__ import annotations

import pathlib
import sys
from collections import OrderedDict

import numpy as np
import torch


def main(arrays: str, folder: pathlib.Path) -> None:
    loaded = np.load(arrays)
    shared: dict[bytes, torch.Tensor] = {}
    state = OrderedDict(
        (name, shared.setdefault(loaded[name].tobytes(), torch.from_numpy(loaded[name])))
        for name in loaded.files
    )
    state._metadata = OrderedDict({"": {"version": 1}})  # as Module.state_dict leaves it
    torch.save(state, folder / "state_dict.pth")
    torch.save(state, folder / "protocol_4.pth", pickle_protocol=4)
    torch.save({k: torch.nn.Parameter(v) for k, v in state.items()}, folder / "parameters.pth")
    strided = {k: v.T.contiguous().T if v.ndim == 2 else v for k, v in state.items()}
    torch.save(strided, folder / "strided.pth")
    torch.save({k: v.bfloat16() for k, v in state.items()}, folder / "bfloat16.pth")
    torch.save({k: v.half() for k, v in state.items()}, folder / "float16.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    parameters = [torch.nn.Parameter(v.clone()) for v in state.values()]
    optimizer = torch.optim.AdamW(parameters)
    sum((p * p).sum() for p in parameters).backward()
    optimizer.step()
    training = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict((f"model.{k}", v) for k, v in state.items()),
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hyper_parameters": {
            "config": pathlib.PurePosixPath("some/object"),
            "value": np.float64(3.5),
            "array": np.arange(3),
            "names": {"a", "b"},
            ("a", 1): torch.float32,
        },
    }
    torch.save(training, folder / "training.ckpt")


if __name__ == "__main__":
    main(sys.argv[1], pathlib.Path(sys.argv[2]))

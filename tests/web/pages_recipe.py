"""Runs the notebook and the page of Gradio; prints what came out as JSON.

python pages_recipe.py (notebook NOTEBOOK | gradio EXAMPLE AUDIO MODEL)
"""

from __future__ import annotations

import json
import sys
from importlib import util
from pathlib import Path
from typing import Any


def notebook(path: str) -> dict[str, Any]:
    """Executes a notebook in its folder; counts what its cells showed."""
    import nbformat
    from nbclient import NotebookClient

    document = nbformat.read(path, as_version=4)
    client = NotebookClient(
        document, timeout=600, resources={"metadata": {"path": str(Path(path).parent)}}
    )
    client.execute()
    outputs = [out for cell in document.cells for out in cell.get("outputs", [])]
    kinds = [kind for out in outputs for kind in out.get("data", {})]
    text = "".join(out.get("text", "") for out in outputs if out.output_type == "stream")
    audio = sum("<audio" in out.get("data", {}).get("text/html", "") for out in outputs)
    return {"pictures": kinds.count("image/png"), "audio": audio, "text": text}


def gradio(example: str, audio: str, model: str) -> dict[str, Any]:
    """Starts the page, and asks it as its own client does."""
    from gradio_client import Client, handle_file

    from mt3_runtime import load_model

    spec = util.spec_from_file_location("gradio_page", example)
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with load_model(model) as opened:
        page = module.build(opened)
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
        client = Client(url, verbose=False)
        plot, table, midi = client.predict(handle_file(audio), "", api_name="/transcribe")
        try:
            client.predict(handle_file(audio), "kazoo", api_name="/transcribe")
        except Exception as error:  # noqa: BLE001  whatever its client makes of ours
            refused = str(error)
        page.close()
    return {
        "plot": plot["type"],
        "table": table["data"],
        "midi": Path(midi).read_bytes().hex(),
        "refused": refused,
    }


if __name__ == "__main__":
    job = {"notebook": notebook, "gradio": gradio}[sys.argv[1]]
    print(json.dumps(job(*sys.argv[2:])))

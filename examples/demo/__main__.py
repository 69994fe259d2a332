"""Start the page: `python -m examples.demo [--model FOLDER] [--dtype bfloat16] [--device-map auto] [--port N]`."""

import argparse
import os
import sys
from pathlib import Path

import gradio as gr
from transformers import logging

from examples.demo.limits import IDLE_SECONDS, MAX_UPLOAD, MAX_WAITING, SWEEP_SECONDS, media_policy, own_folder
from examples.demo.page import CSS, EXAMPLES, Page
from training.folders import load_model, load_processor


def main() -> int:
    """Load the checkpoint, serve the page, print its address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="checkpoint folder or Hub repository (default: the embedded)")
    parser.add_argument("--dtype", default="auto", help="type of the weights, such as bfloat16 (default: as saved)")
    parser.add_argument("--device-map", default="auto", help="where the weights go (default: auto)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve (0.0.0.0: to the whole network)")
    parser.add_argument("--port", type=int, help="port to serve (default: the first free one from 7860)")
    options = parser.parse_args()
    logging.disable_progress_bar()

    with own_folder(sorted({path for path, _ in EXAMPLES})) as folder:
        serve(options, folder)
    return 0


def serve(options: argparse.Namespace, folder: Path) -> None:
    """Serve the page until the process ends.

    Args:
        options: Of the command line.
        folder: Receives all uploads.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    processor = load_processor(options.model, media_policy=media_policy(folder))
    model = load_model(options.model, dtype=options.dtype, device_map=options.device_map)
    name = f"{options.model} · {model.num_parameters() / 1e6:,.0f} M · {str(model.dtype).removeprefix('torch.')}"
    tabs = Page(model.eval(), processor, name, folder / "examples")
    tabs.conversations.sweep_for_ever()
    page = tabs.build(delete_cache=(SWEEP_SECONDS, IDLE_SECONDS))
    # One answer at a time, whatever the number of tabs: there is one model.
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1).launch(
        server_name=options.host,
        server_port=options.port,
        allowed_paths=[str(folder / "examples")],
        max_file_size=MAX_UPLOAD,
        theme=gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        footer_links=[],
        ssr_mode=False,
    )


if __name__ == "__main__":
    sys.exit(main())

"""Pushing a saved model to the Hub from the page: first what would be sent, then sending it."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from obliteratus.amounts import size
from obliteratus.errors import UsageError
from obliteratus.ui.drawing import alert, render
from obliteratus.ui.jobs import Order, View
from obliteratus.ui.laboratory import Laboratory
from obliteratus.ui.panel import panel

LEAD = (
    "First a list is made of every file that would be sent and of what stays here; nothing leaves. "
    "The same model can then be sent to the same repository. A new repository is private."
)
IDLE = "Nothing was listed."
LIST, SEND = "List what would be sent", "Send it"
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN")
SECONDS_TO_SEND = 6 * 3600.0


def words_of(folder: str, repo: str, *, public: bool, only_list: bool) -> tuple[str, ...]:
    """Return the command."""
    words = ["release", "push", "--json"]
    if public:
        words += ["--public", "--yes"]
    if only_list:
        words.append("--dry-run")
    return (*words, "--", folder, repo)


def publishing(lab: Laboratory, page: gr.Blocks, saved: gr.Dropdown) -> None:
    """Build the section below the exports of ``saved``."""
    with gr.Accordion("Push to the Hub", open=False, elem_id="publish-more"):
        gr.HTML(render("lead", text=LEAD))
        with gr.Row(elem_classes="fields"):
            repo = gr.Textbox(label="Repository", placeholder="owner/name", elem_id="publish-repo")
            public = gr.Checkbox(
                label="Public: everybody can download it", elem_id="publish-public"
            )
            step = gr.Radio([LIST, SEND], value=LIST, label="Step", elem_id="publish-step")
        if lab.has_visitors:
            _of_visitors(lab, saved, repo, public)

        def order(folder: str | None, repo: str, public: bool, step: str) -> Order:
            return _order(lab, folder, repo.strip(), public=public, only_list=step == LIST)

        listed = gr.HTML(render=False)
        panel(
            lab, page, "publish",
            button="Go",
            idle=IDLE,
            inputs=[saved, repo, public, step],
            order=order,
            outputs=[listed],
            result=lambda view: (_listed(view),),
        )  # fmt: skip
        listed.render()


def check_listed(lab: Laboratory, words: tuple[str, ...]) -> None:
    """Check that what ``words`` would send has been listed here before.

    Raises:
        UsageError: it was not.
    """
    listed = [
        job for job in lab.jobs.all("publish")
        if "--dry-run" in job.order.words and lab.jobs.state(job) == "finished"
    ]  # fmt: skip
    if not any(_what(job.order.words) == _what(words) for job in listed):
        raise UsageError("list what would be sent first, and read it: then it can be sent.")


def _order(
    lab: Laboratory, folder: str | None, repo: str, *, public: bool, only_list: bool
) -> Order:
    if not folder:
        raise UsageError("which model? Choose a saved one above.")
    if not repo:
        raise UsageError("which repository? Write owner/name.")
    words = words_of(folder, repo, public=public, only_list=only_list)
    if not only_list:
        if lab.has_visitors:
            raise UsageError("here everybody sends with their own account: use Send as me.")
        check_listed(lab, words)
    deed = "list" if only_list else "send"
    return Order("publish", f"{deed} {Path(folder).name} to {repo}", folder, words, Path(folder))


def _what(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in words if word != "--dry-run")


def _listed(view: View) -> str:
    found: Mapping[str, Any] = view.record.result or {}
    return render(
        "listed",
        url=found["url"],
        private=found["private"],
        repo=found["repo"],
        files=[{"path": each["path"], "size": size(each["size"])} for each in found["files"]],
        left_out=found["left_out"],
        amount=size(sum(each["size"] for each in found["files"])),
    )


def _of_visitors(
    lab: Laboratory, saved: gr.Dropdown, repo: gr.Textbox, public: gr.Checkbox
) -> None:
    """Build the button that sends with the visitor's own login, which is never written down."""
    with gr.Row(elem_classes="actions"):
        gr.LoginButton(scale=0)
        send = gr.Button("Send as me", elem_id="publish-as-me", scale=0)
    said = gr.HTML(elem_id="publish-said")

    def sent(folder: str | None, repo: str, public: bool, token: gr.OAuthToken | None) -> str:
        if token is None:
            return alert("Sign in with the Hub first: the model is sent with your account.")
        if not folder or not repo.strip():
            return alert("Choose a saved model above, and write owner/name.")
        words = words_of(folder, repo.strip(), public=public, only_list=False)
        try:
            check_listed(lab, words)
        except UsageError as error:
            return alert(str(error))
        return _sent_with(token.token, words)

    send.click(sent, [saved, repo, public], said)


def _sent_with(token: str, words: tuple[str, ...]) -> str:
    """Send with ``token`` alone: the Space's own is not even in the environment."""
    environment = {key: value for key, value in os.environ.items() if key not in TOKENS}
    done = subprocess.run(
        [sys.executable, "-m", "obliteratus.cli.main", *words],
        env=environment | {"HF_TOKEN": token},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_TO_SEND,
        check=False,
    )
    if done.returncode != 0:
        return alert((done.stderr.strip().splitlines() or ["it was not sent."])[-1])
    return render("idle", text="Sent.")

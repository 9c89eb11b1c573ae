"""Conversations in the place of SFT's titles."""

import dataclasses

from faisca.config import Config
from faisca.data.chat import ChatTemplate
from faisca.data.conversations import ConversationSplits, encode_rows, read_rows
from faisca.data.windows import steps_per_epoch
from faisca.system.progress_bar import track_if_long
from faisca.system.tables import PlainConsole
from faisca.training.setup import Setup


def without_filter(config: Config) -> Config:
    """The configuration without SFT's filter of addresses where it learns from conversations, which have none."""
    if not config.sft.conversations:
        return config
    return dataclasses.replace(config, sft=dataclasses.replace(config.sft, url_contains=""))


def open_conversations(setup: Setup, seed: int) -> ConversationSplits | None:
    """What SFT learns from where it is not titles, held out by `seed`; FaiscaError for what is no conversation."""
    config = setup.config
    if not config.sft.conversations or "sft" not in config.run.stages:
        return None
    template, rows = ChatTemplate(setup.tokenizer), read_rows(config.sft.conversations)
    window, share = config.data.window, config.data.validation_share
    with track_if_long(PlainConsole(stderr=True), "tokenising conversations", len(rows)) as told:
        chats = encode_rows(rows, template, window=window, share=share, seed=seed, told=told)
    steps_per_epoch(chats.train, config.sft.batch_size)  # refuses a batch that is too large
    return chats

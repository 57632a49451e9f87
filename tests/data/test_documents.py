"""Documents: what they are called, and hashes of what they say."""

from __future__ import annotations

from difflm.data.documents import Chat, Document

TALK = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


def test_equal_ids_with_other_labels_are_another_document() -> None:
    one = Document(token=[1, 2], trainable=[False, True])
    assert one.content == Document(token=[1, 2], trainable=[False, True], where="elsewhere").content
    assert one.content != Document(token=[1, 2]).content
    assert one.content != Document(token=[1, 3], trainable=[False, True]).content


def test_hashes_of_chats_and_pairs_tell_what_would_train_differently() -> None:
    chat = Chat(messages=TALK, learnt=(1,))
    pair = Document(chosen=Document(prompt="a", completion="b"), rejected=Document(prompt="a", completion="c"))
    swapped = Document(chosen=pair.rejected, rejected=pair.chosen)
    every = [
        Document(chat=chat),
        Document(chat=Chat(messages=TALK, learnt=(1,), tools=({},))),
        Document(chat=Chat(messages=(*TALK, *TALK), learnt=(3,))),
        Document(chat=Chat(messages=(*TALK, *TALK), learnt=(1, 3))),
        pair,
        swapped,
        Document(prompt="a", completion="b"),
    ]
    assert len({document.content for document in every}) == len(every)
    turned = ({"content": "a", "role": "user"}, TALK[1])
    assert Document(chat=Chat(messages=turned, learnt=(1,)), form="Alpaca", where="g").content == every[0].content


def test_kinds_and_what_is_said() -> None:
    chat = Document(chat=Chat(messages=(*TALK, {"role": "assistant", "tool_calls": []}), learnt=(1,)))
    pair = Document(chosen=Document(prompt="a", completion="b"), rejected=chat)
    every = [chat, pair, Document(text="t"), Document(prompt="", completion="c"), Document(token=[1])]
    assert [each.kind for each in every] == [
        *("messages", "preference pairs", "text", "prompt + completion", "token ids"),
    ]
    assert [each.said() for each in every] == ["a\nb\n", "a\nb\na\nb\n", "t", "\nc", ""]
    assert Document(chat=chat.chat, form="ShareGPT").kind == "ShareGPT"

# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whose turn it is at the proxy: root first, the others in turn, and nobody above his limit."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcinuma.errors import PcinumaError
from pcinuma.proxy.admission import Admission

IN_ALL, FOR_ROOT, OF_A_USER = 12, 3, 5

STEPS = st.lists(st.one_of(st.tuples(st.just("arrive"), st.integers(0, 4)), st.just(("next", 0)), st.just(("leave", 0))), max_size=200)


@given(steps=STEPS)
def test_everybody_has_his_turn_and_his_limit(steps: list[tuple[str, int]]) -> None:
    admission: Admission[tuple[int, int]] = Admission(in_all=IN_ALL, for_root=FOR_ROOT, of_a_user=OF_A_USER)
    waiting: dict[int, deque[int]] = {}
    served: list[int] = []
    passed_over: Counter[int] = Counter()
    for number, (step, uid) in enumerate(steps):
        if step == "arrive":
            has = len(waiting.get(uid, ())) + served.count(uid)
            if uid and has >= OF_A_USER:
                with pytest.raises(PcinumaError, match=f"uid {uid}: it has {OF_A_USER} connections already"):
                    admission.arrive(uid, (uid, number))
            else:
                admission.arrive(uid, (uid, number))
                waiting.setdefault(uid, deque()).append(number)
        elif step == "next":
            found = admission.next()
            room = IN_ALL if 0 in waiting else IN_ALL - FOR_ROOT
            if not waiting or len(served) >= room:
                assert found is None
                continue
            assert found is not None
            uid, came = found
            assert 0 not in waiting or uid == 0
            assert came == waiting[uid].popleft(), "a user's clients keep their order"
            if not waiting[uid]:
                del waiting[uid]
            served.append(uid)
            passed_over[uid] = 0
            if uid:
                passed_over.update(other for other in waiting if other not in (0, uid))
            assert max(passed_over.values(), default=0) <= 4, "nobody is passed over by more than each other user once"
        elif served:
            admission.leave(served.pop(0))
        assert admission.served == len(served)
        assert len(served) <= IN_ALL
    left = admission.drain()
    assert sorted(left) == sorted((uid, number) for uid, queue in waiting.items() for number in queue)

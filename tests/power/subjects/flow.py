"""States of flows that run side by side."""

import json

from subject import main, noise, together

from crewai_native_db import _native

FLOWS = ("a", "b", "c")
STEPS = 24
LARGE = 200_000


def state(flow, step):
    # Some are so large that the log is written back and begun anew.
    size = LARGE if step > STEPS // 2 else 300 * step
    return json.dumps({"flow": flow, "step": step, "text": noise((flow, step), size)})


def store(place, setting):
    return _native.FlowStore(place / "new" / "flows.db", setting == "full")


def run(place, setting, mark):
    for first in range(0, STEPS, 8):
        states = store(place, setting)

        def steps(flow, first=first, states=states):
            for step in range(first, first + 8):
                pending = json.dumps({"asked": step}) if step % 3 == 0 else None
                states.save(flow, "method", step, state(flow, step), pending=pending, keep=5)
                mark(flow, step)

        together(*(lambda flow=flow: steps(flow) for flow in FLOWS))
        states.close()
    states.prune(keep=2)
    states.vacuum()
    mark("vacuum", 0)


def check(place, setting, done):
    states = store(place, setting)
    assert states.check() == []
    for flow in FLOWS:
        text = states.load(flow)
        newest = -1 if text is None else json.loads(text)["step"]
        assert newest < 0 or text == state(flow, newest)
        if setting == "full":
            acknowledged = max((step for name, step in done if name == flow), default=-1)
            assert newest >= acknowledged, f"{flow} is at {newest}, and was at {acknowledged}"
        history = [saved_at for _, _, saved_at, _, _ in states.history(flow, 100)]
        assert history == list(range(newest, newest - len(history), -1))
        pending = states.load_pending(flow)
        if newest >= 0:
            assert pending is not None
            assert json.loads(pending[1])["asked"] == newest // 3 * 3
        states.save(flow, "method", newest + 1, state(flow, newest + 1))
        assert states.load(flow) == state(flow, newest + 1)
    states.close()


main(run, check)

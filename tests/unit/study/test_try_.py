import time
from blip3o.study.start import run_study


def test_try(tiny_study, tmp_path):
    t = time.time()
    assert run_study(tiny_study, tmp_path / "D")
    print(time.time() - t)
    print((tmp_path / "D/report.md").read_text())
    print((tmp_path / "D/runs/flow/seed-0/result.json").read_text())
    import subprocess

    print(subprocess.run(["find", str(tmp_path)], capture_output=True, text=True).stdout)

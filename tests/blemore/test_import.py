import subprocess
import sys


def test_importing_the_room_loads_numpy_and_little_else():
    heavy = ("torch", "transformers", "datasets", "pyarrow", "pandas", "matplotlib", "tqdm")
    program = f"import sys, hf_blemo.blemore; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

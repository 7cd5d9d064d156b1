"""The laboratory as a Hugging Face Space."""

from obliteratus.ui.serve import space

if __name__ == "__main__":
    space()

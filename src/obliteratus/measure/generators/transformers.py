"""The default generator: the model in memory, under whatever hooks are active."""

from obliteratus.events import Deviation
from obliteratus.measure.generation import Completion, generate, generation_deviations
from obliteratus.measure.generators.base import GENERATORS, Generator, Task
from obliteratus.models.chat import Encoded
from obliteratus.models.loaded import LoadedModel


@GENERATORS.register("transformers")
class TransformersGenerator(Generator):
    """Runs :func:`obliteratus.measure.generation.generate`."""

    name = "transformers"

    def answer(self, model: LoadedModel, encoded: Encoded, task: Task) -> tuple[Completion, ...]:
        """Answer with the weights in memory."""
        return generate(
            model,
            encoded,
            max_new_tokens=task.max_new_tokens,
            task=task.name,
            batch_rows=task.batch_rows,
            enough=task.enough,
            finished=task.finished,
            thought_tokens=task.thought_tokens,
        )

    def deviations(self, model: LoadedModel) -> tuple[Deviation, ...]:
        """Return the settings of the generation configuration that are left out."""
        return generation_deviations(model)

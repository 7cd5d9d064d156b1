"""What all records of a report have in common."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen part of the report that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

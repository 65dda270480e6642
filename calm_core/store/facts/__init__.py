"""What a manifest says of each kind of artifact, as types.

A kind is one class. Its fields are the numbers of its stage, which repeat exactly and take part in the digest; those
marked ORIGIN (where the inputs lay) or TIMING (seconds, rates) are of one run, and do not.
"""

from calm_core.store.facts.base import (
    LENGTH_BINS as LENGTH_BINS,
)
from calm_core.store.facts.base import (
    MANIFEST_NAME as MANIFEST_NAME,
)
from calm_core.store.facts.base import (
    ORIGIN as ORIGIN,
)
from calm_core.store.facts.base import (
    ROUNDING as ROUNDING,
)
from calm_core.store.facts.base import (
    SPLITS as SPLITS,
)
from calm_core.store.facts.base import (
    TIMING as TIMING,
)
from calm_core.store.facts.base import (
    UNFINISHED_NAME as UNFINISHED_NAME,
)
from calm_core.store.facts.base import (
    Count as Count,
)
from calm_core.store.facts.base import (
    Facts as Facts,
)
from calm_core.store.facts.base import (
    FileEntry as FileEntry,
)
from calm_core.store.facts.base import (
    FilePath as FilePath,
)
from calm_core.store.facts.base import (
    Measured as Measured,
)
from calm_core.store.facts.base import (
    Number as Number,
)
from calm_core.store.facts.base import (
    Packing as Packing,
)
from calm_core.store.facts.base import (
    Part as Part,
)
from calm_core.store.facts.base import (
    Precision as Precision,
)
from calm_core.store.facts.base import (
    Rate as Rate,
)
from calm_core.store.facts.base import (
    Record as Record,
)
from calm_core.store.facts.base import (
    Seconds as Seconds,
)
from calm_core.store.facts.base import (
    Sha256 as Sha256,
)
from calm_core.store.facts.base import (
    Share as Share,
)
from calm_core.store.facts.base import (
    Split as Split,
)
from calm_core.store.facts.base import (
    require_at_most as require_at_most,
)
from calm_core.store.facts.base import (
    require_once as require_once,
)
from calm_core.store.facts.base import (
    require_sum as require_sum,
)
from calm_core.store.facts.data import (
    DatasetFacts as DatasetFacts,
)
from calm_core.store.facts.data import (
    DocumentCounts as DocumentCounts,
)
from calm_core.store.facts.data import (
    DuplicatesFacts as DuplicatesFacts,
)
from calm_core.store.facts.data import (
    EncodedVocabulary as EncodedVocabulary,
)
from calm_core.store.facts.data import (
    MixtureFacts as MixtureFacts,
)
from calm_core.store.facts.data import (
    ScanFacts as ScanFacts,
)
from calm_core.store.facts.data import (
    Shard as Shard,
)
from calm_core.store.facts.data import (
    ShardsFacts as ShardsFacts,
)
from calm_core.store.facts.data import (
    SourceFile as SourceFile,
)
from calm_core.store.facts.data import (
    SplitCounts as SplitCounts,
)
from calm_core.store.facts.data import (
    TextLoss as TextLoss,
)
from calm_core.store.facts.data import (
    TokenizerFacts as TokenizerFacts,
)
from calm_core.store.facts.data import (
    Vocabulary as Vocabulary,
)
from calm_core.store.facts.data import (
    require_losses_of as require_losses_of,
)
from calm_core.store.facts.evaluation import (
    Accuracy as Accuracy,
)
from calm_core.store.facts.evaluation import (
    AutoencoderQuality as AutoencoderQuality,
)
from calm_core.store.facts.evaluation import (
    BrierScores as BrierScores,
)
from calm_core.store.facts.evaluation import (
    Calibration as Calibration,
)
from calm_core.store.facts.evaluation import (
    CalibrationBin as CalibrationBin,
)
from calm_core.store.facts.evaluation import (
    Difference as Difference,
)
from calm_core.store.facts.evaluation import (
    EvaluationFacts as EvaluationFacts,
)
from calm_core.store.facts.evaluation import (
    FrequencyAccuracy as FrequencyAccuracy,
)
from calm_core.store.facts.evaluation import (
    KnownText as KnownText,
)
from calm_core.store.facts.evaluation import (
    LanguageModelQuality as LanguageModelQuality,
)
from calm_core.store.facts.evaluation import (
    NoiseAccuracy as NoiseAccuracy,
)
from calm_core.store.facts.evaluation import (
    Perplexity as Perplexity,
)
from calm_core.store.facts.evaluation import (
    PlaceScores as PlaceScores,
)
from calm_core.store.facts.evaluation import (
    References as References,
)
from calm_core.store.facts.evaluation import (
    SampleDistances as SampleDistances,
)
from calm_core.store.facts.evaluation import (
    Score as Score,
)
from calm_core.store.facts.evaluation import (
    ScoreDifference as ScoreDifference,
)
from calm_core.store.facts.evaluation import (
    SpeedFacts as SpeedFacts,
)
from calm_core.store.facts.evaluation import (
    TextSample as TextSample,
)
from calm_core.store.facts.evaluation import (
    TrainingCost as TrainingCost,
)
from calm_core.store.facts.evaluation import (
    WrittenTexts as WrittenTexts,
)
from calm_core.store.facts.models import (
    AutoencoderFacts as AutoencoderFacts,
)
from calm_core.store.facts.models import (
    CalmFacts as CalmFacts,
)
from calm_core.store.facts.models import (
    ExportFacts as ExportFacts,
)
from calm_core.store.facts.models import (
    ModelFacts as ModelFacts,
)
from calm_core.store.facts.models import (
    TransformerFacts as TransformerFacts,
)
from calm_core.store.facts.registry import (
    LONGEST_TOLD as LONGEST_TOLD,
)
from calm_core.store.facts.registry import (
    Check as Check,
)
from calm_core.store.facts.registry import (
    Decided as Decided,
)
from calm_core.store.facts.registry import (
    RegistrationFacts as RegistrationFacts,
)
from calm_core.store.facts.report import (
    ReportFacts as ReportFacts,
)
from calm_core.store.facts.report import (
    StageTime as StageTime,
)
from calm_core.store.facts.training import (
    CheckpointFacts as CheckpointFacts,
)
from calm_core.store.facts.training import (
    GuardState as GuardState,
)
from calm_core.store.facts.training import (
    OutcomeFacts as OutcomeFacts,
)
from calm_core.store.facts.training import (
    SpecFacts as SpecFacts,
)

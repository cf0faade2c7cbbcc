//! Rigatoni as a program: the change stream of one collection to S3, its state in Redis.
//!
//! Rigatoni is a library, so this is the program that its guides describe, with the settings that they name for
//! throughput. Every choice says below where it is from. Arguments are pairs of `--name value`; see `Arguments`.
//!
//! It prints Rigatoni's own log at level `info`, whose line `... event loop started` is the sign that the stream
//! is open, and a line `written EVENTS SECONDS` whenever that count has grown.

use std::collections::HashMap;
use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{
    Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use rigatoni_core::pipeline::{Pipeline, PipelineConfig};
use rigatoni_core::state::StateStore;
use rigatoni_core::stream::ChangeStreamConfig;
use rigatoni_destinations::s3::{
    AwsCredentials, Compression, KeyGenerationStrategy, S3Config, S3Destination, SerializationFormat,
};
use rigatoni_stores::redis::{RedisConfig, RedisStore};
use tokio::signal::unix::{signal, SignalKind};
use tracing::Level;

type Failure = Box<dyn Error + Send + Sync>;

/// How often the counts of events are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Nothing had come for so long that nothing more will.
const GAVE_UP: u8 = 3;

/// What the command line says.
struct Arguments(HashMap<String, String>);

impl Arguments {
    fn parse() -> Result<Self, Failure> {
        let mut pairs = HashMap::new();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or_else(|| format!("{word} is not a --name"))?;
            let value = words.next().ok_or_else(|| format!("{word} lacks its value"))?;
            pairs.insert(name.to_owned(), value);
        }
        Ok(Self(pairs))
    }

    fn text(&self, name: &str) -> Result<&str, Failure> {
        let value = self.0.get(name).ok_or_else(|| format!("--{name} is missing"))?;
        Ok(value)
    }

    fn number(&self, name: &str) -> Result<u64, Failure> {
        self.text(name)?.parse().map_err(|error| format!("--{name}: {error}").into())
    }
}

/// How many events have come out of the stream, from the one metric of Rigatoni's that tells.
///
/// `stats()` counts written events only. Whoever wants the last ones of a backlog written must know that they are
/// there: a batch that is not full waits for its timer, or for the end of the pipeline.
#[derive(Default)]
struct Received(AtomicU64);

impl GaugeFn for Received {
    fn increment(&self, value: f64) {
        self.0.fetch_add(value as u64, Ordering::Relaxed);
    }
    fn decrement(&self, _: f64) {} // a batch was written
    fn set(&self, _: f64) {}
}

struct ReceivedOnly(Arc<Received>);

impl Recorder for ReceivedOnly {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match key.name() {
            "rigatoni_batch_queue_size" => Gauge::from_arc(Arc::clone(&self.0)),
            _ => Gauge::noop(),
        }
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// The state store of the guide to production: a pool of ten, tokens that live for a week.
async fn state(arguments: &Arguments) -> Result<RedisStore, Failure> {
    let config = RedisConfig::builder()
        .url(arguments.text("redis")?)
        .pool_size(10)
        .ttl(Duration::from_secs(7 * 24 * 60 * 60))
        .build()?;
    Ok(RedisStore::new(config).await?)
}

/// The S3 destination, in one of three formats.
///
/// `parquet` is compressed with Snappy inside, which cannot be chosen. The guides also set `Compression::Zstd`
/// with it: `parquet.zst`. That compresses the file as a whole, and no query engine reads it. The page on
/// performance recommends `jsonl.zst`.
async fn destination(arguments: &Arguments) -> Result<S3Destination, Failure> {
    let (format, compression) = match arguments.text("format")? {
        "parquet" => (SerializationFormat::Parquet, Compression::None),
        "parquet.zst" => (SerializationFormat::Parquet, Compression::Zstd),
        "jsonl.zst" => (SerializationFormat::Json, Compression::Zstd),
        other => return Err(format!("--format: {other} is none").into()),
    };
    let config = S3Config::builder()
        .bucket(arguments.text("bucket")?)
        .region("us-east-1")
        .prefix(arguments.text("prefix")?)
        .endpoint_url(arguments.text("endpoint")?)
        .force_path_style(true)
        .credentials(AwsCredentials::new(arguments.text("access-key")?, arguments.text("secret-key")?))
        .format(format)
        .compression(compression)
        .key_strategy(KeyGenerationStrategy::HivePartitioned) // "for analytics", says the guide to S3
        .max_retries(10) // the same guide, for production
        .build()?;
    Ok(S3Destination::new(config).await?)
}

/// The pipeline.
///
/// `--watch database` is the default of Rigatoni, and the one level of one database that takes its resume token
/// from the store by itself. `--watch collection` is the fast one: tokens go to the store beside the stream and
/// not between two events. But version 0.2.0 reads its stored token there, logs it, and opens the stream without
/// it, at the present time. So that it can be measured at all, this program hands over the token that lies under
/// the collection's name. Rigatoni writes that one after each batch that has reached S3.
async fn pipeline(arguments: &Arguments) -> Result<Pipeline<RedisStore, S3Destination>, Failure> {
    let collection = arguments.text("collection")?;
    let store = state(arguments).await?;
    let mut stream = ChangeStreamConfig::builder().full_document_update_lookup();
    let mut builder = PipelineConfig::builder()
        .mongodb_uri(arguments.text("uri")?)
        .database(arguments.text("database")?)
        .batch_size(usize::try_from(arguments.number("batch")?)?)
        .batch_timeout(Duration::from_secs(arguments.number("batch-timeout-s")?))
        .channel_buffer_size(10_000) // the guide to production, for throughput
        .max_retries(10) // the same guide, for robustness, with the two delays
        .retry_delay(Duration::from_secs(1))
        .max_retry_delay(Duration::from_secs(60))
        // There is one instance. With the lock, one that was killed could not be started again for 30 s.
        .disable_distributed_lock();
    match arguments.text("watch")? {
        "database" => builder = builder.watch_database(),
        "collection" => {
            builder = builder.watch_collections(vec![collection.to_owned()]);
            if let Some(token) = store.get_resume_token(collection).await? {
                stream = stream.resume_token(token);
            }
        }
        other => return Err(format!("--watch: {other} is none").into()),
    }
    let config = builder.stream_config(stream.build()?).build()?;
    Ok(Pipeline::new(config, store, destination(arguments).await?).await?)
}

/// Run until `--events` have come and are written, or until SIGTERM when that is 0.
async fn run() -> Result<ExitCode, Failure> {
    let started = Instant::now();
    let arguments = Arguments::parse()?;
    let wanted = arguments.number("events")?;
    let patience = Duration::from_secs(arguments.number("patience-s")?);
    let received = Arc::new(Received::default());
    metrics::set_global_recorder(ReceivedOnly(Arc::clone(&received)))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut pipeline = pipeline(&arguments).await?;
    pipeline.start().await?;

    let say = |written| println!("written {written} {:.3}", started.elapsed().as_secs_f64());
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let (mut written, mut grew) = (0, Instant::now());
    let mut code = ExitCode::SUCCESS;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = looks.tick() => {}
        }
        let now = pipeline.stats().await.events_processed;
        if now != written {
            (written, grew) = (now, Instant::now());
            say(written);
        }
        let came = received.0.load(Ordering::Relaxed);
        if wanted > 0 && came >= wanted {
            break;
        }
        if wanted > 0 && grew.elapsed() > patience {
            println!("gave up: {came} of {wanted} events came, and none was written for {patience:?}");
            code = ExitCode::from(GAVE_UP);
            break;
        }
    }
    pipeline.stop().await?; // it writes the batch that is not full
    say(pipeline.stats().await.events_processed);
    Ok(code)
}

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_max_level(Level::INFO).with_ansi(false).init();
    run().await.unwrap_or_else(|error| {
        println!("failed: {error}");
        ExitCode::FAILURE
    })
}

import com.github.luben.zstd.Zstd;
import io.debezium.embedded.Connect;
import io.debezium.engine.ChangeEvent;
import io.debezium.engine.DebeziumEngine;
import io.debezium.engine.DebeziumEngine.RecordCommitter;
import io.debezium.engine.RecordChangeEvent;
import io.debezium.engine.format.ChangeEventFormat;
import io.debezium.engine.format.JsonByteArray;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardCopyOption;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.apache.kafka.connect.source.SourceRecord;

/**
 * Debezium's MongoDB connector in its embedded engine: one collection to nowhere, or to files of JSON lines.
 *
 * <p>Debezium's engine is a library, so this is the program that its guide describes
 * (https://debezium.io/documentation/reference/stable/development/engine.html), with the connector's settings
 * (https://debezium.io/documentation/reference/stable/connectors/mongodb.html). Arguments are pairs of
 * {@code --name value}. It prints a line {@code written EVENTS SECONDS} after each batch, with the seconds since the
 * JVM started, and ends after {@code --events}, or at SIGTERM when that is 0.
 */
public final class Peer {
    private static final long STARTED = ManagementFactory.getRuntimeMXBean().getStartTime();
    private static final int ZSTD_LEVEL = 3;

    private final Map<String, String> arguments = new HashMap<>();
    private final CountDownLatch done = new CountDownLatch(1);
    private final Path directory;
    private final long wanted;
    private long written;
    private long files;
    private volatile boolean failed;

    private Peer(String[] words) {
        for (int at = 0; at + 1 < words.length; at += 2) {
            arguments.put(words[at].substring(2), words[at + 1]);
        }
        directory = Path.of(arguments.get("directory"));
        wanted = Long.parseLong(arguments.get("events"));
    }

    /**
     * The settings.
     *
     * <p>What was tried on 200,000 events on a quiet machine, in two rounds each: batches and a queue of four times the
     * default sizes with a shorter poll interval were a tenth faster than the defaults. Batches of 16,384 and an interval
     * of 10 ms were not faster still. {@code record.processing.threads} (1 instead of as many as there are cores),
     * {@code statistics.metrics.enabled}, and the interface {@code Consumer}, ordered or not, instead of batches made no
     * difference beyond the noise: these are as by default.
     */
    private Properties properties() {
        String target = arguments.get("database") + "." + arguments.get("collection");
        Properties properties = new Properties();
        properties.setProperty("name", "peer");
        properties.setProperty("connector.class", "io.debezium.connector.mongodb.MongoDbConnector");
        properties.setProperty("topic.prefix", "peer");
        properties.setProperty("mongodb.connection.string", arguments.get("uri"));
        properties.setProperty("offset.storage", "org.apache.kafka.connect.storage.FileOffsetBackingStore");
        properties.setProperty("offset.storage.file.filename", directory.resolve("offsets.dat").toString());
        properties.setProperty("max.batch.size", "8192"); // by default 2,048
        properties.setProperty("max.queue.size", "32768"); // by default 8,192
        properties.setProperty("poll.interval.ms", "100"); // by default 500
        properties.setProperty("offset.flush.interval.ms", arguments.get("flush-ms"));
        // A stream of the collection alone, as the engine opens it; by default it watches the whole deployment.
        properties.setProperty("capture.scope", "collection");
        properties.setProperty("capture.target", target);
        properties.setProperty("collection.include.list", target);
        properties.setProperty("capture.mode", "change_streams_update_full"); // updateLookup, as the engine
        properties.setProperty("tombstones.on.delete", "false"); // these are for compacted topics of Kafka
        properties.setProperty("converter.schemas.enable", "false"); // the guide: no schema within each message
        if (arguments.get("kind").equals("load")) {
            properties.setProperty("snapshot.mode", "initial");
        } else {
            // no_data would begin at the present time. With neither part of a snapshot, the connector begins at the
            // given time, unless there are offsets.
            properties.setProperty("snapshot.mode", "configuration_based");
            properties.setProperty("snapshot.mode.configuration.based.snapshot.data", "false");
            properties.setProperty("snapshot.mode.configuration.based.snapshot.schema", "false");
            properties.setProperty("snapshot.mode.configuration.based.start.stream", "true");
            String[] start = arguments.get("start").split(",");
            long time = Long.parseLong(start[0]) << 32 | Long.parseLong(start[1]);
            properties.setProperty("capture.start.op.time", Long.toString(time));
        }
        return properties;
    }

    private DebeziumEngine<?> engine() {
        if (arguments.get("sink").equals("null")) {
            return DebeziumEngine.create(ChangeEventFormat.of(Connect.class))
                .using(properties())
                .using((success, message, error) -> ended(success, message, error))
                .notifying(this::count)
                .build();
        }
        return DebeziumEngine.create(JsonByteArray.class)
            .using(properties())
            .using((success, message, error) -> ended(success, message, error))
            .notifying(this::write)
            .build();
    }

    private void count(
        List<RecordChangeEvent<SourceRecord>> records, RecordCommitter<RecordChangeEvent<SourceRecord>> committer
    ) throws InterruptedException {
        commit(records, committer);
    }

    /** A file for each batch, under its name only when it is whole: the batch is marked as processed after that. */
    private void write(
        List<ChangeEvent<byte[], byte[]>> records, RecordCommitter<ChangeEvent<byte[], byte[]>> committer
    ) throws InterruptedException {
        try {
            ByteArrayOutputStream lines = new ByteArrayOutputStream(1 << 20);
            for (ChangeEvent<byte[], byte[]> record : records) {
                lines.write(record.value());
                lines.write('\n');
            }
            String name = String.format("%d-%06d.jsonl.zst", STARTED, files++);
            Path partial = directory.resolve(name + ".partial");
            Files.write(partial, Zstd.compress(lines.toByteArray(), ZSTD_LEVEL));
            Files.move(partial, directory.resolve(name), StandardCopyOption.ATOMIC_MOVE);
        } catch (IOException error) {
            throw new UncheckedIOException(error);
        }
        commit(records, committer);
    }

    private <R> void commit(List<R> records, RecordCommitter<R> committer) throws InterruptedException {
        for (R record : records) {
            committer.markProcessed(record);
        }
        committer.markBatchFinished();
        written += records.size();
        System.out.printf("written %d %.3f%n", written, seconds());
        if (wanted > 0 && written >= wanted) {
            done.countDown();
        }
    }

    private void ended(boolean success, String message, Throwable error) {
        if (!success) {
            failed = true;
            System.out.println("failed: " + message);
            if (error != null) {
                error.printStackTrace(System.out);
            }
        }
        done.countDown();
    }

    private static double seconds() {
        return (System.currentTimeMillis() - STARTED) / 1000.0;
    }

    public static void main(String[] words) throws Exception {
        Peer peer = new Peer(words);
        ExecutorService executor = Executors.newSingleThreadExecutor();
        DebeziumEngine<?> engine = peer.engine();
        Runtime.getRuntime().addShutdownHook(new Thread(peer.done::countDown));
        executor.execute(engine);
        peer.done.await();
        if (!peer.failed) {
            engine.close(); // it stores the last offsets
        }
        System.out.printf("closed %.3f%n", seconds());
        Runtime.getRuntime().halt(peer.failed ? 1 : 0);
    }
}

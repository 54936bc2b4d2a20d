//! Work whose caller goes away in its middle: what it took is given back, and who is beside it or comes after it notices nothing.
//!
//! The device is held where the caller leaves, so that this happens in the middle however fast the machine is.

use std::time::Duration;

use serde_json::{Map, json};
use tailor_pb::inference::{
    EngineUsage, GenerateChunk, GenerateRequest, GenerateResponse, ListResidentRequest, ListResidentResponse,
    LoadRequest,
};
use tailor_testkit::LlamaShape;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::Streaming;

use crate::support::answers;
use crate::support::base::only_characters;
use crate::support::clients::Addresses;
use crate::support::cluster::health;
use crate::support::fleet::write_adapter;
use crate::support::{Family, Hang, Up, eventually};

/// What the gateway's other threads take to do what is to be done, and far more.
const SETTLED: Duration = Duration::from_millis(500);

async fn list(at: &Addresses) -> ListResidentResponse {
    at.admin().list_resident(ListResidentRequest {}).await.expect("a list").into_inner()
}

async fn usage(at: &Addresses) -> EngineUsage {
    list(at).await.bases[0].usage.expect("what the engine holds")
}

/// Waits until the engine has nothing left of anybody.
async fn idle(at: &Addresses) -> EngineUsage {
    eventually("everything is given back", async || {
        let now = usage(at).await;
        ((now.running, now.waiting, now.waiting_tokens, now.kv_blocks_held) == (0, 0, 0, 0)).then_some(now)
    })
    .await
}

/// Goes away in the middle of whatever it has begun.
async fn leave<T>(caller: JoinHandle<T>) {
    caller.abort();
    assert!(caller.await.is_err(), "it had not been answered");
    tokio::time::sleep(SETTLED).await;
}

fn of_version(version: u64) -> GenerateRequest {
    answers::request(Family::Llama, &format!("grammar@{version}"), 0, 12)
}

async fn say(at: &Addresses, version: u64) -> GenerateResponse {
    answers::ask(at, of_version(version)).await.expect("an answer")
}

async fn resident(at: &Addresses) -> Vec<(u64, u64)> {
    list(at).await.adapters.iter().map(|adapter| (adapter.version, adapter.size_bytes)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_whose_caller_goes_away_is_finished_and_holds_no_more_than_any_other() {
    let hang = Hang::build();
    // One adapter fits: what leaks by a byte or a lease keeps the next one from being alone.
    let settings = [("TAILOR__GATEWAY__ADAPTER_BYTES", "1"), ("TAILOR__GATEWAY__HANG_MS", "300")];
    let up = Up::with(&[&hang.environment()[..], &settings].concat()).await;
    let (at, cli) = (&up.addresses, up.cli());
    let base = Family::Llama.write(up.folder.path()).display().to_string();
    cli.text(&["base", "add", &base, "--name", Family::Llama.base(), "--dtype", "f32"]);
    for seed in 1..=2 {
        let folder = up.folder.join(format!("adapter-{seed}"));
        write_adapter(Family::Llama, &folder, seed);
        let folder = folder.display().to_string();
        cli.text(&["adapter", "import", &folder, "--name", "grammar", "--base", Family::Llama.base()]);
    }
    let first = say(at, 1).await;
    let alone = resident(at).await;
    let second = say(at, 2).await;
    assert_ne!(first.text, second.text, "they can be told apart");
    for joined in [false, true] {
        assert_eq!(resident(at).await.len(), 1, "the second one alone");
        idle(at).await;
        hang.hold();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let caller = tokio::spawn({
            let at = at.clone();
            async move {
                match joined {
                    false => at.admin().load(LoadRequest { adapter: "grammar@1".into() }).await.map(drop),
                    true => answers::ask(&at, of_version(1)).await.map(drop),
                }
            }
        });
        eventually("the device is asked to take it", async || {
            (health(&at.gateway).await.as_deref() == Some("NOT_SERVING")).then_some(())
        })
        .await;
        // Another one who waits for the same load, or nobody.
        let next = joined.then(|| {
            let at = at.clone();
            tokio::spawn(async move { say(&at, 1).await })
        });
        leave(caller).await;
        assert!(resident(at).await.iter().all(|(version, _)| *version == 2), "it is not there yet");
        hang.let_go();
        eventually("the load is finished, and the other adapter has left for it", async || {
            (resident(at).await == alone).then_some(())
        })
        .await;
        if let Some(next) = next {
            assert_eq!(next.await.expect("no panic").text, first.text, "who stayed is answered");
        }
        let again = say(at, 1).await;
        assert_eq!((&again.text, &again.adapter_digest), (&first.text, &first.adapter_digest));
        idle(at).await;
        assert_eq!(say(at, 2).await.text, second.text);
        eventually("the first leaves for the second as ever", async || {
            let resident = resident(at).await;
            (resident.len() == 1 && resident[0].0 == 2).then_some(())
        })
        .await;
    }
}

/// How somebody asks who will go away.
#[derive(Debug, Clone, Copy)]
enum Door {
    Stream,
    Whole,
    /// The path, and whether it is streamed.
    Http(&'static str, bool),
}

const DOORS: [Door; 6] = [
    Door::Stream,
    Door::Whole,
    Door::Http("completions", true),
    Door::Http("chat/completions", true),
    Door::Http("completions", false),
    Door::Http("chat/completions", false),
];
const TOKENS: u32 = 400;

/// Of as many tokens as are asked for, each of which is told by itself.
fn endless(number: usize) -> GenerateRequest {
    let bias = only_characters().collect();
    GenerateRequest { logit_bias: bias, top_logprobs: Some(0), ..answers::request(Family::Llama, "", number, TOKENS) }
}

/// Asks, and reads whatever comes.
async fn ask(at: Addresses, door: Door) {
    match door {
        Door::Stream => {
            let mut stream = at.gateway().generate_stream(endless(2)).await.expect("taken").into_inner();
            while stream.message().await.expect("a piece").is_some() {}
        }
        Door::Whole => drop(at.gateway().generate(endless(2)).await.expect("an answer")),
        Door::Http(path, stream) => {
            let bias: Map<_, _> = only_characters().map(|(id, bias)| (id.to_string(), json!(bias))).collect();
            let mut body = json!({
                "model": Family::Llama.base(), "max_tokens": TOKENS, "stream": stream, "logit_bias": bias,
            });
            match path {
                "completions" => body["prompt"] = "ben sees 2 boats".into(),
                _ => body["messages"] = json!([{ "role": "user", "content": "ben sees 2 boats" }]),
            }
            let (address, body) = (at.gateway.trim_start_matches("http://"), body.to_string());
            let mut connection = TcpStream::connect(address).await.expect("connect");
            let length = body.len();
            let head = format!("POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
            connection.write_all(head.as_bytes()).await.expect("send");
            connection.write_all(body.as_bytes()).await.expect("send");
            let mut rest = Vec::new();
            connection.read_to_end(&mut rest).await.expect("an answer");
            panic!("it is closed from the other side: {}", String::from_utf8_lossy(&rest));
        }
    }
}

/// What was heard of a stream by now.
#[derive(Default)]
struct Heard {
    text: String,
    tokens: u64,
    end: Option<GenerateResponse>,
}

impl Heard {
    fn take(&mut self, chunk: GenerateChunk) {
        self.text.push_str(&chunk.text);
        self.tokens += chunk.tokens.len() as u64;
        self.end = chunk.end.or(self.end.take());
    }

    /// All that comes until nothing comes for a while.
    async fn until_silence(&mut self, stream: &mut Streaming<GenerateChunk>) {
        while let Ok(next) = tokio::time::timeout(SETTLED, stream.message()).await {
            self.take(next.expect("a piece").expect("it goes on"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_broken_off_by_any_door_ends_within_a_step_and_its_neighbour_notices_nothing() {
    let hang = Hang::build();
    let up = Up::with(&hang.environment()).await;
    let at = &up.addresses;
    // So large that a few hundred steps take longer than a test takes to look.
    let shape = LlamaShape { vocab: 128, context: 512, feed_forward: 16_384, ..LlamaShape::default() };
    let folder = Family::write_llama(up.folder.path(), &shape).display().to_string();
    up.cli().text(&["base", "add", &folder, "--name", Family::Llama.base(), "--dtype", "f32"]);
    let alone = answers::ask(at, endless(1)).await.expect("an answer");
    assert_eq!(alone.completion_tokens, TOKENS);
    let most_blocks = u64::from(alone.prompt_tokens + TOKENS).div_ceil(16);
    for door in DOORS {
        let before = idle(at).await;
        let mut neighbour = at.gateway().generate_stream(endless(1)).await.expect("taken").into_inner();
        let caller = tokio::spawn(ask(at.clone(), door));
        eventually("both are answered side by side", async || (usage(at).await.running == 2).then_some(())).await;
        hang.hold();
        let mut heard = Heard::default();
        heard.until_silence(&mut neighbour).await;
        // What the two have made up to here, and how much of it is the neighbour's.
        let made = usage(at).await.made_tokens - before.made_tokens;
        let of_caller = made.saturating_sub(heard.tokens);
        leave(caller).await;
        assert_eq!(usage(at).await.running, 2, "{door:?}: the device stands still");
        hang.let_go();
        let after = eventually("the other one has left", async || {
            let now = usage(at).await;
            (now.running < 2).then_some(now)
        })
        .await;
        assert!(after.kv_blocks_held <= most_blocks, "{door:?}: only the neighbour's are held: {after:?}");
        while let Some(chunk) = neighbour.message().await.expect("the neighbour is answered") {
            heard.take(chunk);
        }
        let end = heard.end.expect("its figures");
        assert_eq!((heard.tokens, end.completion_tokens), (u64::from(TOKENS), TOKENS), "{door:?}");
        assert_eq!(heard.text, alone.text, "{door:?}: the neighbour says what it says alone");
        let made = idle(at).await.made_tokens - before.made_tokens - u64::from(TOKENS);
        // The step in which it was left, the one that it was too late for, and one that had not been counted.
        assert!(made <= of_caller + 3, "{door:?}: {made} tokens were made, {of_caller} of them before it was left");
    }
}

//! The protocol of the guest agent of QEMU: JSON, a line each, over a byte stream whose other end is the guest's.
//!
//! What comes is data of a stranger. An answer is bounded in length and time; what is left of earlier ones is told from it by
//! `guest-sync-delimited`, whose answer starts with the byte 0xFF, which is in no JSON.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

/// The longest answer that is taken in, in bytes.
const MAX_ANSWER: usize = 256 * 1024;
/// What may come before the answer to a `guest-sync-delimited`: everything that the monitor and the agent had kept, and more.
const MAX_STALE: usize = 1024 * 1024;
/// Begins the answer to a `guest-sync-delimited`.
const SENTINEL: u8 = 0xff;

/// Why the agent did not do something.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// Nobody is there.
    #[error("no guest agent runs in the VM: install and start qemu-guest-agent there")]
    Absent,
    /// It does not answer.
    #[error("the guest agent has not answered for {} s", .0.as_secs())]
    Silent(Duration),
    /// It refused.
    #[error("the guest agent refuses: {0}")]
    Refused(String),
    /// It said something that is no answer.
    #[error("the guest agent answered something senseless: {0}")]
    Senseless(String),
}

/// A connection.
pub struct Channel<S> {
    stream: S,
    /// What came and was not looked at yet.
    ahead: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Channel<S> {
    pub fn new(stream: S) -> Channel<S> {
        Channel { stream, ahead: Vec::new() }
    }

    /// Has something done. No answer to anything else is taken for this one's.
    pub async fn call<T: DeserializeOwned>(&mut self, command: &str, arguments: Value, limit: Duration) -> Result<T, AgentError> {
        let deadline = Instant::now() + limit;
        timeout_at(deadline, self.exchange(command, arguments)).await.unwrap_or(Err(AgentError::Silent(limit)))
    }

    async fn exchange<T: DeserializeOwned>(&mut self, command: &str, arguments: Value) -> Result<T, AgentError> {
        self.synchronize().await?;
        self.send(b"", command, arguments).await?;
        let line = self.take_until(b'\n', MAX_ANSWER).await?;
        answer(&line)
    }

    /// Asks for something that is not answered when it is done. Gives the refusal, if one comes in time.
    pub async fn ask(&mut self, command: &str, arguments: Value, limit: Duration) -> Result<(), AgentError> {
        match self.call::<Value>(command, arguments, limit).await {
            Err(AgentError::Silent(_) | AgentError::Absent) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Passes over whatever is left of earlier times.
    async fn synchronize(&mut self) -> Result<(), AgentError> {
        // Small enough for any reader of JSON, and not to be guessed.
        let id = Uuid::new_v4().as_u128() as u32;
        // The sentinel ends whatever half a command an earlier connection has left with the agent.
        self.send(&[SENTINEL], "guest-sync-delimited", json!({ "id": id })).await?;
        let mut passed = 0;
        loop {
            let before = self.take_until(SENTINEL, MAX_STALE).await?;
            let line = self.take_until(b'\n', MAX_ANSWER).await?;
            if answer::<u64>(&line).is_ok_and(|answered| answered == u64::from(id)) {
                return Ok(());
            }
            passed += before.len() + line.len();
            if passed > MAX_STALE {
                return Err(AgentError::Senseless("it does not come to its answer".into()));
            }
        }
    }

    async fn send(&mut self, before: &[u8], command: &str, arguments: Value) -> Result<(), AgentError> {
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let bytes = [before, request.to_string().as_bytes(), b"\n"].concat();
        self.stream.write_all(&bytes).await.map_err(|_| AgentError::Absent)
    }

    /// The bytes before the next `end`, which is taken, too.
    async fn take_until(&mut self, end: u8, limit: usize) -> Result<Vec<u8>, AgentError> {
        let mut looked_at = 0;
        loop {
            if let Some(position) = self.ahead[looked_at..].iter().position(|byte| *byte == end) {
                let mut taken: Vec<u8> = self.ahead.drain(..=looked_at + position).collect();
                taken.pop();
                return Ok(taken);
            }
            looked_at = self.ahead.len();
            if looked_at > limit {
                self.ahead.clear();
                return Err(AgentError::Senseless(format!("more than {limit} bytes")));
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece).await {
                Ok(count @ 1..) => self.ahead.extend_from_slice(&piece[..count]),
                Ok(0) | Err(_) => return Err(AgentError::Absent),
            }
        }
    }
}

fn answer<T: DeserializeOwned>(line: &[u8]) -> Result<T, AgentError> {
    let senseless = |error: serde_json::Error| AgentError::Senseless(error.to_string());
    let mut answer: Value = serde_json::from_slice(line).map_err(senseless)?;
    if let Some(error) = answer.get("error") {
        let text = error.get("desc").and_then(Value::as_str).unwrap_or("without a reason");
        return Err(AgentError::Refused(plain(text)));
    }
    let value = answer.get_mut("return").map(Value::take);
    serde_json::from_value(value.ok_or_else(|| AgentError::Senseless("neither a result nor an error".into()))?).map_err(senseless)
}

/// Text of the guest for people: short, and nothing that a terminal would obey.
pub fn plain(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Answers requests with what `reply` makes of them, until the other side goes.
    fn agent(stream: DuplexStream, reply: impl Fn(&Value) -> Vec<u8> + Send + 'static) {
        tokio::spawn(async move {
            let (read, mut write) = tokio::io::split(stream);
            let mut lines = BufReader::new(read).split(b'\n');
            while let Ok(Some(line)) = lines.next_segment().await {
                let line: Vec<u8> = line.into_iter().filter(|byte| *byte != SENTINEL).collect();
                let request: Value = serde_json::from_slice(&line).unwrap();
                if write.write_all(&reply(&request)).await.is_err() {
                    return;
                }
            }
        });
    }

    fn synchronized(request: &Value, other: &[u8]) -> Vec<u8> {
        match request["execute"].as_str() {
            Some("guest-sync-delimited") => {
                let answer = json!({ "return": request["arguments"]["id"] }).to_string();
                [&[SENTINEL], answer.as_bytes(), b"\n"].concat()
            }
            _ => other.to_vec(),
        }
    }

    async fn ping(other: &'static [u8]) -> Result<Value, AgentError> {
        let (ours, theirs) = duplex(1 << 20);
        agent(theirs, move |request| synchronized(request, other));
        Channel::new(ours).call("guest-ping", Value::Null, LIMIT).await
    }

    #[tokio::test]
    async fn answers_are_told_from_what_was_left_of_earlier_times() {
        let (ours, mut theirs) = duplex(1 << 20);
        theirs.write_all(b"{\"return\": 1}\n\xff{\"return\": 99}\nhalf an ans").await.unwrap();
        agent(theirs, |request| synchronized(request, b"{\"return\": {\"version\": \"7.2\"}}\n"));
        let mut channel = Channel::new(ours);
        for _ in 0..2 {
            let value: Value = channel.call("guest-info", Value::Null, LIMIT).await.unwrap();
            assert_eq!(value["version"], "7.2");
        }
    }

    #[tokio::test]
    async fn hostile_answers_are_errors() {
        let refused = ping(b"{\"error\": {\"class\": \"x\", \"desc\": \"no \\u001b[2Jway\"}}\n").await.unwrap_err();
        assert_eq!(refused.to_string(), "the guest agent refuses: no [2Jway");
        for senseless in [&b"{}\n"[..], b"\n", b"null\n", b"[[[[\n", b"\xff\n", b"{\"return\"\n"] {
            assert!(matches!(ping(senseless).await, Err(AgentError::Senseless(_))), "{senseless:?}");
        }
        static LONG: [u8; MAX_ANSWER + 8192] = [b'['; MAX_ANSWER + 8192];
        assert!(matches!(ping(&LONG).await, Err(AgentError::Senseless(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_comes_to_an_answer_is_given_up() {
        let (ours, theirs) = duplex(1 << 20);
        let silent = Channel::new(ours).call::<Value>("guest-ping", Value::Null, LIMIT).await;
        assert!(matches!(silent, Err(AgentError::Silent(_))));
        drop(theirs);
        // Sentinels and noise without an end.
        let (ours, mut theirs) = duplex(1 << 16);
        tokio::spawn(async move { while theirs.write_all(&b"\xff{\"return\": 1}\n".repeat(1000)).await.is_ok() {} });
        assert!(matches!(
            Channel::new(ours).call::<Value>("guest-ping", Value::Null, LIMIT).await,
            Err(AgentError::Senseless(_))
        ));
        let (ours, theirs) = duplex(1 << 16);
        drop(theirs);
        assert!(matches!(Channel::new(ours).call::<Value>("guest-ping", Value::Null, LIMIT).await, Err(AgentError::Absent)));
    }
}

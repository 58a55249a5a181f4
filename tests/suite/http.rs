//! A small HTTP client and the real server, for the tests of `glan serve`.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;

use super::support::{Outcome, glan_command, root};

/// A server that hangs fails the test instead of hanging it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A response, body and all.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// As sent.
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The payloads of the server-sent events.
    pub fn events(&self) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.body);
        text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).map(str::to_owned).collect()
    }
}

/// `glan serve` on the primer teacher, as a process of its own.
pub struct Server {
    pub address: SocketAddr,
    pub model: String,
    child: Child,
    stderr: Option<JoinHandle<String>>,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts it on a free port and waits until it listens.
    pub fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = glan_command(folder.path());
        command.args(["serve", "--port", "0", "--json", "--model"]).arg(root().join("models/primer-teacher"));
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if line.is_empty() {
            let _ = child.kill();
            panic!("the server did not start: {}", stderr.join().unwrap());
        }
        let ready: Value = serde_json::from_str(&line).unwrap();
        let address = ready["url"].as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
        let model = ready["model"].as_str().unwrap().to_owned();
        Self { address, model, child, stderr: Some(stderr), _folder: folder }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop, as a service manager would.
    pub fn terminate(&self) {
        assert!(Command::new("kill").arg(self.pid().to_string()).status().unwrap().success());
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Outcome {
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        let stderr = self.stderr.take().unwrap().join().unwrap();
        Outcome { code, stdout: String::new(), stderr }
    }

    /// Stops it; it must end well and must not have panicked.
    #[track_caller]
    pub fn stop(self) {
        self.terminate();
        let outcome = self.wait().expect_code(0);
        for word in ["panicked", "error:", "ERROR"] {
            assert!(!outcome.stderr.contains(word), "{outcome:#?}");
        }
    }

    /// A connection with which a hanging server becomes a failing test.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub fn get(&self, path: &str) -> Response {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), b"").unwrap()
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.try_post(path, body.to_string().as_bytes()).unwrap()
    }

    /// A post that may break off.
    pub fn try_post(&self, path: &str, body: &[u8]) -> std::io::Result<Response> {
        self.send(&post_head(path, body.len()), body)
    }

    /// Sends these very bytes and reads to the end.
    pub fn send(&self, head: &str, body: &[u8]) -> std::io::Result<Response> {
        let mut stream = self.connect();
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        read_response(&mut BufReader::new(stream))
    }

    /// Posts, and leaves the response to be read from the stream.
    pub fn open(&self, path: &str, body: &Value) -> BufReader<TcpStream> {
        let body = body.to_string();
        let mut stream = self.connect();
        stream.write_all(post_head(path, body.len()).as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        BufReader::new(stream)
    }

    /// A sample of `/metrics` by name, or by name and further label.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        let page = String::from_utf8(self.get("/metrics").body).unwrap();
        let start = format!("glan_{name}{{");
        let line = page.lines().find(|line| line.starts_with(&start) && line.contains(label));
        line.unwrap_or_else(|| panic!("no {name} {label} in\n{page}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Looks again and again until a sample has this value.
    #[track_caller]
    pub fn await_metric(&self, name: &str, label: &str, value: f64) {
        let start = std::time::Instant::now();
        while self.metric(name, label) != value {
            assert!(start.elapsed() < PATIENCE, "{name} {label} is {}, not {value}", self.metric(name, label));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone where the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The head of a post.
pub fn post_head(path: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    )
}

/// Status and head of a response.
pub fn read_head(stream: &mut BufReader<TcpStream>) -> std::io::Result<(u16, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, head))
}

/// A whole response.
pub fn read_response(stream: &mut BufReader<TcpStream>) -> std::io::Result<Response> {
    let (status, head) = read_head(stream)?;
    let lower = head.to_ascii_lowercase();
    let mut body = Vec::new();
    if lower.contains("transfer-encoding: chunked") {
        while let Some(chunk) = read_chunk(stream)? {
            body.extend(chunk);
        }
    } else {
        stream.read_to_end(&mut body)?;
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        assert_eq!(body.len(), length.trim().parse::<usize>().unwrap());
    }
    Ok(Response { status, head, body })
}

/// The next chunk of a chunked body; `None` at its end.
pub fn read_chunk(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let length = usize::from_str_radix(line.trim(), 16).map_err(|_| std::io::ErrorKind::UnexpectedEof)?;
    let mut chunk = vec![0; length + 2];
    stream.read_exact(&mut chunk)?;
    chunk.truncate(length);
    Ok((length > 0).then_some(chunk))
}

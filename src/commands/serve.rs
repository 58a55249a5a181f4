//! `glan serve`: OpenAI's API over HTTP.

use std::{
    net::{SocketAddr, ToSocketAddrs},
    time::Duration,
};

use anyhow::Result;
use clap::Args;

use crate::{
    cli::ModelArgs,
    config,
    engine::{self, live::Live},
    error::usage,
    serve::{self, Options},
    telemetry,
};

/// Arguments of `glan serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Address or name to listen at; others than this machine's own loopback are open to the network.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen at; 0 takes a free one.
    #[arg(long, value_name = "N", default_value_t = 8000)]
    pub port: u16,
    /// What clients must send as `Authorization: Bearer KEY` to use /v1.
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// The model's name in requests and replies; by default what --model says.
    #[arg(long, value_name = "NAME")]
    pub served_model_name: Option<String>,
    /// Longest sequence in tokens; 0 takes the model's own limit.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_model_len: usize,
    /// Answers that may wait while `engine.max_num_seqs` others run; more are refused with status 429.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_waiting: usize,
    /// Longest request body in bytes; longer ones are refused with status 413.
    #[arg(long, value_name = "BYTES", default_value_t = 2 << 20)]
    pub max_body_bytes: usize,
    /// Seconds that running requests have to finish once the server is asked to stop.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub grace: u64,
    /// One line on stdout once it listens: {"url": …, "model": …}.
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn main(args: &ServeArgs) -> Result<()> {
    let address = resolve(&args.host, args.port)?;
    let config = config::load(None, &args.model.set)?;
    let device = args.model.device.open()?;
    let engine = engine::load_engine(&args.model.model, &config.engine, &device, args.model.dtype, args.max_model_len)?;
    if !address.ip().is_loopback() {
        let key = if args.api_key.is_some() { "with the API key" } else { "without any key" };
        tracing::warn!("{} is open to the network: whoever reaches it may use the model {key}", address.ip());
    }
    let options = Options {
        address,
        model: args.served_model_name.clone().unwrap_or_else(|| args.model.model.clone()),
        api_key: args.api_key.clone(),
        max_num_seqs: config.engine.max_num_seqs,
        max_waiting: args.max_waiting,
        max_body_bytes: args.max_body_bytes,
        grace: Duration::from_secs(args.grace),
    };
    let model = options.model.clone();
    serve::run(Live::new(engine), options, |address| {
        let url = format!("http://{address}");
        tracing::info!("`{model}` is served at {url}/v1; Ctrl-C stops it");
        let line = if args.json { serde_json::json!({"url": url, "model": model}).to_string() } else { url };
        telemetry::print_result(line);
        Ok(())
    })?;
    tracing::info!("stopped");
    Ok(())
}

/// The address of a name; the first, where it has several.
fn resolve(host: &str, port: u16) -> Result<SocketAddr> {
    let addresses = (host, port).to_socket_addrs();
    let first = addresses.map_err(|error| usage(format!("--host `{host}` is no address of this machine: {error}")))?;
    first.into_iter().next().ok_or_else(|| usage(format!("--host `{host}` has no address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_resolved_and_nonsense_is_a_usage_error() {
        assert_eq!(resolve("127.0.0.1", 80).unwrap().to_string(), "127.0.0.1:80");
        assert_eq!(resolve("::1", 80).unwrap().to_string(), "[::1]:80");
        assert!(resolve("localhost", 80).unwrap().ip().is_loopback());
        let error = resolve("not an address", 80).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
    }
}

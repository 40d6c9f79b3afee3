//! The event stream over RabbitMQ's stream protocol. Uses a public codec but not its client, which
//! sends a request at which brokers before 3.11 close the connection.

use std::collections::HashMap;

use rabbitmq_stream_protocol::codec::{Decoder as _, Encoder as _};
use rabbitmq_stream_protocol::commands::credit::CreditCommand;
use rabbitmq_stream_protocol::commands::open::OpenCommand;
use rabbitmq_stream_protocol::commands::peer_properties::PeerPropertiesCommand;
use rabbitmq_stream_protocol::commands::sasl_authenticate::SaslAuthenticateCommand;
use rabbitmq_stream_protocol::commands::sasl_handshake::SaslHandshakeCommand;
use rabbitmq_stream_protocol::commands::subscribe::{OffsetSpecification, SubscribeCommand};
use rabbitmq_stream_protocol::commands::tune::TunesCommand;
use rabbitmq_stream_protocol::{Request, Response, ResponseCode, ResponseKind};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::place::{TestEnv, in_time};
use crate::reader::is_ending;

const SUBSCRIPTION: u8 = 1;

struct Connection {
    stream: TcpStream,
}

impl Connection {
    async fn send(&mut self, request: impl Into<Request>) {
        let mut frame = Vec::new();
        request.into().encode(&mut frame).unwrap();
        self.stream.write_all(&frame).await.unwrap();
    }

    async fn receive(&mut self) -> ResponseKind {
        let length = self.stream.read_u32().await.unwrap();
        let mut frame = length.to_be_bytes().to_vec();
        frame.resize(4 + length as usize, 0);
        self.stream.read_exact(&mut frame[4..]).await.unwrap();
        let (rest, response) = Response::decode(&frame).unwrap();
        assert!(rest.is_empty(), "{} bytes follow", rest.len());
        response.kind()
    }

    /// Sends a request that is answered with a bare code.
    async fn ask(&mut self, request: impl Into<Request>) {
        self.send(request).await;
        let ResponseKind::Generic(answer) = self.receive().await else { panic!("no answer") };
        assert!(answer.is_ok(), "{:?}", answer.code());
    }

    /// Logs in to a place's virtual host.
    async fn open(place: &TestEnv) -> Self {
        let url: reqwest::Url = place.services.get("BOB_TEST_STREAM_URL").parse().unwrap();
        let address = (url.host_str().unwrap(), url.port().unwrap());
        let mut connection = Self { stream: TcpStream::connect(address).await.unwrap() };
        connection.send(PeerPropertiesCommand::new(1, HashMap::new())).await;
        assert!(matches!(connection.receive().await, ResponseKind::PeerProperties(_)));
        connection.send(SaslHandshakeCommand::new(2)).await;
        assert!(matches!(connection.receive().await, ResponseKind::SaslHandshake(_)));
        let login = format!("\0{}\0{}", url.username(), url.password().unwrap());
        let plain = SaslAuthenticateCommand::new(3, "PLAIN".to_owned(), login.into_bytes());
        connection.ask(plain).await;
        let ResponseKind::Tunes(tunes) = connection.receive().await else { panic!("no limits") };
        connection.send(TunesCommand::new(*tunes.max_frame_size(), 0)).await;
        connection.send(OpenCommand::new(4, place.vhost.name.clone())).await;
        let ResponseKind::Open(opened) = connection.receive().await else { panic!("no answer") };
        assert_eq!(opened.code(), &ResponseCode::Ok);
        connection
    }
}

/// A run's events up to its ending.
pub(crate) async fn events_of(place: &TestEnv, run: &str) -> Vec<Value> {
    let mut connection = Connection::open(place).await;
    let stream = "bob.event-stream".to_owned();
    let from = OffsetSpecification::First;
    let subscribe = SubscribeCommand::new(5, SUBSCRIPTION, stream, from, 10, HashMap::new());
    connection.ask(subscribe).await;
    let mut events = Vec::new();
    let reading = async {
        loop {
            let ResponseKind::Deliver(chunk) = connection.receive().await else { continue };
            assert_eq!(chunk.subscription_id, SUBSCRIPTION);
            connection.send(CreditCommand::new(SUBSCRIPTION, 1)).await;
            for message in chunk.messages {
                let properties = message.properties().expect("properties");
                let content_type = format!("{:?}", properties.content_type);
                assert!(content_type.contains("\"application/json\""), "{content_type}");
                let event: Value = serde_json::from_slice(message.data().unwrap()).unwrap();
                if event["run-id"] == run {
                    events.push(event);
                    if is_ending(&events[events.len() - 1]) {
                        return;
                    }
                }
            }
        }
    };
    in_time("the events over the stream protocol", reading).await;
    events
}

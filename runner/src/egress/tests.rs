use std::net::IpAddr;

use super::*;

fn net(text: &str) -> Exception {
    Exception { pattern: Pattern::Net(text.parse().unwrap()), port: None }
}

fn policy(exceptions: Vec<Exception>, own: Vec<OwnService>) -> Policy {
    Policy::restricted(Rules { exceptions, own })
}

async fn why(policy: &Policy, url: &str) -> Option<String> {
    policy.check(&Url::parse(url).unwrap()).await.err().map(|refused| refused.to_string())
}

#[tokio::test]
async fn the_workers_own_host_and_metadata_services_are_closed_in_every_form() {
    let closed = policy(Vec::new(), Vec::new());
    for host in [
        "127.0.0.1",
        "127.8.9.1",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "168.63.129.16",
        "100.100.100.200",
        "224.0.0.1",
        "255.255.255.255",
        // Other notations, which the URL parser converts to an address above.
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[ff02::1]",
        "[fd00:ec2::254]",
        "[fd20:ce::254]",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "[::127.0.0.1]",
        "[::ffff:0:127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::127.0.0.1]",
        "[2002:7f00:1::]",
        "[2002:a9fe:a9fe::1]",
        "[2001:0:7f00:1::1]",
        "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
        "[2001:db8::5efe:127.0.0.1]",
    ] {
        let why = why(&closed, &format!("http://{host}:8080/x")).await;
        assert!(why.is_some_and(|why| why.contains("BOB_ALLOWED_ADDRESSES")), "{host} is open");
    }
    for host in
        ["10.1.2.3", "192.168.7.7", "8.8.8.8", "[2001:db8::1]", "[fd00::1]", "[::ffff:8.8.8.8]"]
    {
        assert_eq!(why(&closed, &format!("http://{host}/x")).await, None, "{host}");
    }
    assert_eq!(why(&Policy::unrestricted(), "http://127.0.0.1/").await, None);
}

#[tokio::test]
async fn an_address_of_this_host_is_closed_whichever_interface_has_it() {
    // The source address of outgoing packets, if there is a route.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let Ok(()) = socket.connect("198.51.100.1:9") else { return };
    let own: IpAddr = socket.local_addr().unwrap().ip();
    let why = why(&policy(Vec::new(), Vec::new()), &format!("http://{own}/")).await.unwrap();
    assert!(own.is_loopback() || why.contains("own host"), "{why}");
}

#[tokio::test]
async fn a_name_is_refused_by_what_it_resolves_to() {
    let closed = policy(Vec::new(), Vec::new());
    let error = closed.addresses("localhost", 80).await.unwrap_err();
    assert!(refusal(&error).is_some(), "{error}");
    let said = error.to_string();
    assert!(said.contains("localhost:80") && said.contains("loopback"), "{said}");
    assert!(!Policy::unrestricted().addresses("localhost", 80).await.unwrap().is_empty());
}

#[tokio::test]
async fn an_exception_opens_a_host_a_port_or_a_network() {
    let at = |pattern: &str, port| Exception { pattern: Pattern::Name(pattern.into()), port };
    let named = policy(vec![at("LocalHost", Some(80))], Vec::new());
    assert!(named.addresses("LOCALHOST", 80).await.is_ok());
    assert!(named.addresses("localhost", 81).await.is_err());
    assert!(
        why(&named, "http://127.0.0.1/").await.is_some(),
        "the exception is for a name, not for its address"
    );
    let any_port = policy(vec![at("localhost", None)], Vec::new());
    assert!(any_port.addresses("localhost", 81).await.is_ok());
    let loopback = policy(vec![net("127.0.0.0/8"), net("::1/128")], Vec::new());
    assert!(loopback.addresses("localhost", 9).await.is_ok());
    assert_eq!(why(&loopback, "http://[::ffff:127.0.0.1]/").await, None);
    assert!(why(&loopback, "http://169.254.1.1/").await.is_some());
    let one = Exception { port: Some(8080), ..net("127.0.0.1/32") };
    let one = policy(vec![one], Vec::new());
    assert_eq!(why(&one, "http://127.0.0.1:8080/").await, None);
    assert!(why(&one, "http://127.0.0.1:8081/").await.is_some());
}

#[tokio::test]
async fn the_workers_own_services_are_closed_unless_their_port_is_listed() {
    let own = |host: &str| OwnService { name: "etcd", host: host.into(), ports: vec![2379, 2380] };
    let elsewhere = policy(Vec::new(), vec![own("10.9.8.7")]);
    let said = why(&elsewhere, "http://10.9.8.7:2380/").await.unwrap();
    assert!(said.contains("the worker's own etcd"), "{said}");
    assert!(why(&elsewhere, "http://[::ffff:10.9.8.7]:2379/").await.is_some());
    assert!(why(&elsewhere, "http://[64:ff9b::10.9.8.7]:2379/").await.is_some());
    assert_eq!(why(&elsewhere, "http://10.9.8.7:8080/").await, None);
    assert_eq!(why(&elsewhere, "http://10.9.8.8:2379/").await, None);

    let opened = policy(vec![net("127.0.0.0/8")], vec![own("localhost")]);
    assert_eq!(why(&opened, "http://127.0.0.1:8080/").await, None);
    let said = why(&opened, "http://127.0.0.5:2379/").await.unwrap();
    assert!(said.contains("own etcd"), "the network does not open it: {said}");
    let listed = Exception { port: Some(2379), ..net("127.0.0.1/32") };
    let listed = policy(vec![listed], vec![own("localhost")]);
    assert_eq!(why(&listed, "http://127.0.0.1:2379/").await, None);

    let lost = policy(Vec::new(), vec![own("no-such-host.invalid")]);
    assert!(why(&lost, "http://10.0.0.1:2379/").await.is_some(), "etcd might have that address");
    assert_eq!(why(&lost, "http://10.0.0.1:80/").await, None);
}

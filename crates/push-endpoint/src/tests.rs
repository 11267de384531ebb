use proptest::prelude::*;

use super::*;

const PUBLIC: Policy = Policy {
    allow_http: false,
    allow_private: false,
};

fn check(url: &str, policy: Policy) -> Result<(), EndpointError> {
    parse_url(url, policy).map(drop)
}

#[test]
fn blanks_control_characters_and_invisible_characters_are_refused() {
    for blank in [
        ' ', '\t', '\n', '\r', '\0', '\u{7f}', '\u{85}', '\u{a0}', '\u{ad}', '\u{200b}', '\u{202e}',
        '\u{2066}', '\u{3000}', '\u{feff}',
    ] {
        for url in [
            format!("{blank}https://push.example.com/a"),
            format!("https://push.exa{blank}mple.com/a"),
            format!("https://push.example.com/a{blank}b"),
            format!("https://push.example.com/a?{blank}"),
            format!("https://push.example.com/a{blank}"),
        ] {
            assert_eq!(check(&url, PUBLIC), Err(EndpointError::Blank), "{url:?}");
        }
    }
    assert_eq!(check("https://push.example.com/a%20b", PUBLIC), Ok(()));
}

#[test]
fn spellings_of_one_endpoint_are_recognised() {
    assert!(is_same_endpoint(
        "HTTPS://Push.Example.com.:443/%61",
        "https://push.example.com/a"
    ));
    assert!(!is_same_endpoint(
        "https://push.example.com/a",
        "https://push.example.com/b"
    ));
    assert!(is_same_endpoint("not a url", "not a url"));
    assert!(!is_same_endpoint("not a url", "another"));
}

#[test]
fn each_invalid_url_has_its_own_error() {
    use EndpointError::*;
    let private = |ip: &str| Err(PrivateAddress(ip.parse().unwrap()));
    let table: &[(&str, Result<(), EndpointError>)] = &[
        ("https://push.example.com/abc?x=1", Ok(())),
        ("https://push.example.com:8443/abc", Ok(())),
        ("https://8.8.8.8/", Ok(())),
        ("https://[2606:4700::1111]/", Ok(())),
        ("", Err(Malformed)),
        ("push.example.com/abc", Err(Malformed)),
        ("https://", Err(Malformed)),
        ("https://push.example.com../", Err(Malformed)),
        ("https://push..example.com/", Err(Malformed)),
        ("https://./", Err(PrivateName)),
        ("https://push.example.com:99999/", Err(Malformed)),
        ("http://push.example.com/", Err(PlainHttp)),
        ("ftp://push.example.com/", Err(Scheme)),
        ("file:///etc/passwd", Err(Scheme)),
        ("javascript:alert(1)", Err(Scheme)),
        ("https://user@push.example.com/", Err(UserInfo)),
        ("https://user:word@push.example.com/", Err(UserInfo)),
        ("https://push.example.com/#part", Err(Fragment)),
        ("https://push.example.com:0/", Err(Port)),
        ("https://localhost/", Err(PrivateName)),
        ("https://LOCALHOST./", Err(PrivateName)),
        ("https://a.localhost/", Err(PrivateName)),
        ("https://metadata/", Err(PrivateName)),
        ("https://metadata.google.internal/", Err(PrivateName)),
        ("https://printer.local/", Err(PrivateName)),
        ("https://notlocal.example/", Ok(())),
        ("https://127.0.0.1/", private("127.0.0.1")),
        ("https://2130706433/", private("127.0.0.1")),
        ("https://0x7f.1/", private("127.0.0.1")),
        ("https://0177.0.0.1/", private("127.0.0.1")),
        ("https://0/", private("0.0.0.0")),
        ("https://169.254.169.254/latest/", private("169.254.169.254")),
        ("https://[::1]/", private("::1")),
        ("https://[::ffff:10.0.0.1]/", private("::ffff:10.0.0.1")),
    ];
    for (url, expected) in table {
        assert_eq!(check(url, PUBLIC), *expected, "{url}");
    }
    let long = format!("https://push.example.com/{}", "a".repeat(URL_BYTES_MAX));
    assert_eq!(check(&long, PUBLIC), Err(TooLong(long.len())));
    let grows = format!("https://push.example.com/{}", "ä".repeat(700));
    assert_eq!(check(&grows, PUBLIC), Err(TooLong(25 + 700 * 6)));
}

#[test]
fn only_endpoints_allowed_by_the_policy_are_accepted() {
    let http = Policy {
        allow_http: true,
        ..PUBLIC
    };
    assert_eq!(check("http://push.example.com/", http), Ok(()));
    assert_eq!(check("http://localhost/", http), Err(EndpointError::PrivateName));
    assert_eq!(
        check("gopher://push.example.com/", http),
        Err(EndpointError::Scheme)
    );
    let private = Policy {
        allow_private: true,
        ..PUBLIC
    };
    assert_eq!(check("https://localhost/", private), Ok(()));
    assert_eq!(check("https://10.0.0.1/", private), Ok(()));
    assert_eq!(check("http://10.0.0.1/", private), Err(EndpointError::PlainHttp));
}

#[test]
fn only_addresses_on_the_public_internet_are_public() {
    let table: &[(&str, bool)] = &[
        ("1.1.1.1", true),
        ("9.9.9.9", true),
        ("100.63.255.255", true),
        ("100.128.0.0", true),
        ("172.15.0.1", true),
        ("172.32.0.1", true),
        ("192.0.1.1", true),
        ("198.17.0.1", true),
        ("223.255.255.255", true),
        ("0.0.0.0", false),
        ("0.1.2.3", false),
        ("10.255.0.1", false),
        ("100.64.0.1", false),
        ("100.127.255.255", false),
        ("127.0.0.1", false),
        ("127.255.255.254", false),
        ("169.254.169.254", false),
        ("172.16.0.1", false),
        ("172.31.255.255", false),
        ("192.0.0.170", false),
        ("192.0.2.1", false),
        ("192.88.99.1", false),
        ("192.168.1.1", false),
        ("198.18.0.1", false),
        ("198.51.100.1", false),
        ("203.0.113.1", false),
        ("224.0.0.1", false),
        ("240.0.0.1", false),
        ("255.255.255.255", false),
        ("2606:4700::1111", true),
        ("2a00:1450::1", true),
        ("2001:4860::8888", true),
        ("2002:0808:0808::1", true),
        ("64:ff9b::8.8.8.8", true),
        ("::ffff:8.8.8.8", true),
        ("::", false),
        ("::1", false),
        ("::127.0.0.1", false),
        ("::ffff:127.0.0.1", false),
        ("::ffff:169.254.169.254", false),
        ("64:ff9b::10.0.0.1", false),
        ("64:ff9b:1::1", false),
        ("100::1", false),
        ("2001::1", false),
        ("2001:2::1", false),
        ("2001:20::1", false),
        ("2001:db8::1", false),
        ("2002:7f00:1::1", false),
        ("2002:c0a8:101::1", false),
        ("3fff::1", false),
        ("fc00::1", false),
        ("fd00:ec2::254", false),
        ("fe80::1", false),
        ("fec0::1", false),
        ("ff02::1", false),
    ];
    for (address, public) in table {
        assert_eq!(is_public(address.parse().unwrap()), *public, "{address}");
    }
}

/// What `std` knows of the special addresses, and of the forms of IPv6 that name one of IPv4.
fn is_private_by_std(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_documentation()
                || v4.is_multicast()
                || v4.is_unspecified()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
                || v6.to_ipv4().is_some_and(|v4| is_private_by_std(v4.into()))
        }
    }
}

/// Addresses of which about every second one is private.
fn addresses() -> impl Strategy<Value = IpAddr> {
    let private = prop::sample::select(vec![
        [10, 0, 0, 1],
        [127, 0, 0, 1],
        [169, 254, 169, 254],
        [172, 16, 3, 4],
        [192, 168, 0, 9],
        [0, 0, 0, 0],
        [224, 0, 0, 1],
        [255, 255, 255, 255],
    ]);
    let v4 = prop_oneof![private, any::<[u8; 4]>()].prop_map(Ipv4Addr::from);
    let prefix = prop::sample::select(vec![
        0_u128,
        0xffff << 32,
        0x64_ff9b << 96,
        0xfc00 << 112,
        0xfe80 << 112,
    ]);
    let embedded =
        (prefix, v4.clone()).prop_map(|(prefix, v4)| Ipv6Addr::from(prefix | u128::from(u32::from(v4))));
    prop_oneof![
        4 => v4.prop_map(IpAddr::from),
        2 => embedded.prop_map(IpAddr::from),
        1 => any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into()),
    ]
}

/// One number of an address as `inet_aton` reads it: decimal, octal or hexadecimal.
fn number(value: u32, form: u8) -> String {
    match form % 4 {
        0 => value.to_string(),
        1 => format!("0{value:o}"),
        2 => format!("0x{value:x}"),
        _ => format!("0X{value:08X}"),
    }
}

/// The spellings of an address that resolvers or parsers understand: one to four numbers in any base, full-width
/// digits, percent-encoding, a dot at the end, and the forms of IPv6.
fn spelling(address: IpAddr, [parts, form, disguise]: [u8; 3]) -> String {
    let plain = match address {
        IpAddr::V4(v4) => {
            let bits = u32::from(v4);
            let first = |count: u32| (0..count).map(move |at| bits >> (24 - 8 * at) & 0xff);
            let count = u32::from(parts % 4);
            let rest = bits & u32::MAX.checked_shr(8 * count).unwrap_or(0);
            let all = first(count).chain([rest]);
            let texts: Vec<_> = all
                .enumerate()
                .map(|(at, part)| number(part, form.wrapping_add(at as u8 * (form >> 4))))
                .collect();
            texts.join(".")
        }
        IpAddr::V6(v6) if parts.is_multiple_of(2) => format!("[{v6}]"),
        IpAddr::V6(v6) => format!(
            "[{}]",
            v6.segments().map(|segment| format!("{segment:04X}")).join(":")
        ),
    };
    match disguise % 6 {
        0 => format!("{plain}."),
        1 => plain
            .bytes()
            .fold(String::new(), |text, byte| text + &format!("%{byte:02x}")),
        2 => plain
            .chars()
            .map(|c| {
                if c.is_ascii_digit() {
                    char::from_u32(c as u32 + 0xfee0).unwrap()
                } else {
                    c
                }
            })
            .collect(),
        3 => plain.replace('.', "\u{3002}"),
        _ => plain,
    }
}

/// Checks what an accepted URL names: no private address and no private name, for this parser, for the one of `std`,
/// and after it was read again from its text, as the store has it.
fn check_accepted(text: &str) -> Result<(), TestCaseError> {
    let Ok(url) = parse_url(text, PUBLIC) else {
        return Ok(());
    };
    prop_assert_eq!(url.scheme(), "https");
    prop_assert_eq!(check_parsed(&url, PUBLIC), Ok(()));
    prop_assert_eq!(parse_url(url.as_str(), PUBLIC), Ok(url.clone()));
    let host = url.host_str().unwrap();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        prop_assert!(!is_private_by_std(address), "{} is accepted as {}", text, address);
        prop_assert!(matches!(url.host(), Some(Host::Ipv4(_) | Host::Ipv6(_))));
    } else {
        // A resolver takes a name for an address only if its last label is a number.
        let last = host.rsplit('.').next().unwrap().to_ascii_lowercase();
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
            || last
                .strip_prefix("0x")
                .is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        prop_assert!(!is_number, "{} is accepted as {}", text, host);
        prop_assert!(!is_private_name(host), "{} is accepted as {}", text, host);
        prop_assert!(
            host.is_ascii() && host.contains('.'),
            "{} is accepted as {}",
            text,
            host
        );
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_address_that_std_calls_private_is_public(address in addresses()) {
        prop_assert!(!(is_public(address) && is_private_by_std(address)), "{}", address);
    }

    #[test]
    fn no_spelling_of_a_private_address_is_accepted(address in addresses(), forms: [u8; 3]) {
        let url = format!("https://{}/", spelling(address, forms));
        check_accepted(&url)?;
        if !is_public(address) {
            prop_assert!(parse_url(&url, PUBLIC).is_err(), "{} is {}", url, address);
        }
    }

    #[test]
    fn a_plain_public_address_is_accepted(address in addresses().prop_filter("public", |a| is_public(*a))) {
        let url = match address {
            IpAddr::V4(v4) => format!("https://{v4}/"),
            IpAddr::V6(v6) => format!("https://[{v6}]/"),
        };
        prop_assert!(parse_url(&url, PUBLIC).is_ok(), "{}", url);
    }

    #[test]
    fn no_url_near_a_private_one_is_accepted_as_one(
        text in herald_fuzz::near(prop::sample::select(vec![
            "https://127.0.0.1/", "https://[::ffff:10.0.0.1]:8443/a?b=c", "https://LOCALHOST./", "https://metadata.google.internal",
            "https://push.example.com/", "https://169.254.169.254.nip.io/", "https://user@10.0.0.1/", "https:\\\\0x7f.1\\",
            "https://b\u{fc}cher.example/%7E?", "https://\u{ff11}27.0.0.1",
        ]).prop_map(|url| url.as_bytes().to_vec())),
    ) {
        check_accepted(&String::from_utf8_lossy(&text))?;
    }
}

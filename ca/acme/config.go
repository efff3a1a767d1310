package acme

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/smallstep/certificates/authority/provisioner"

	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/listen"
)

const (
	// minTTL leaves a client that looks once an hour two looks after half life.
	minTTL = 10 * time.Second
	// minKey and maxKey bound the key of an external account, in bytes: that of
	// HS256 at least (RFC 7518 section 3.2).
	minKey, maxKey = 32, 1024
)

// Config says who gets certificates by ACME.
type Config struct {
	// Listen is host:port; empty for nowhere, and then nothing else counts.
	Listen string `yaml:"listen"`
	// URL is where clients find it, https://host or https://host:port. What comes for
	// another host is refused.
	URL string `yaml:"url"`
	// CertFile and KeyFile are PEM files with the server's certificate; without them
	// the authority issues one for the host of URL itself.
	CertFile string `yaml:"cert_file"`
	KeyFile  string `yaml:"key_file"`
	// Names are the DNS names that certificates may have: www.example.org is that
	// one, .example.org all below it.
	Names []string `yaml:"names"`
	// Challenges are those that clients may choose of; empty for all three.
	Challenges []string `yaml:"challenges"`
	// RequireExternalAccount lets only those make an account who have the key of one
	// of ExternalAccounts.
	RequireExternalAccount bool              `yaml:"require_external_account"`
	ExternalAccounts       []ExternalAccount `yaml:"external_accounts"`
	// TTL is the life of certificates; Config of the authority bounds it.
	TTL config.Duration `yaml:"ttl"`
	// Networks are those that validation may connect to although their addresses are
	// private or otherwise special; public addresses are always allowed.
	Networks []string `yaml:"networks"`
	// Resolver is the DNS server for validation, host:port; empty for the machine's.
	Resolver string `yaml:"resolver"`
	// HTTPPort and TLSPort are those that validation connects to.
	HTTPPort int `yaml:"http_port"`
	TLSPort  int `yaml:"tls_port"`
}

// ExternalAccount is a key with which clients may make accounts (RFC 8555 section
// 7.3.4).
type ExternalAccount struct {
	// ID is the key's identifier, as clients give it.
	ID string `yaml:"id"`
	// KeyFile has the key in base64url, mode 0600.
	KeyFile string `yaml:"key_file"`
	// Names are the names of Config.Names that its accounts may have; empty for all.
	Names []string `yaml:"names"`
}

// Default is a configuration that serves nowhere.
func Default() Config {
	return Config{
		RequireExternalAccount: true,
		TTL:                    config.Duration(24 * time.Hour),
		HTTPPort:               80, TLSPort: 443,
	}
}

// challenges are those that there are.
func challenges() []string {
	return []string{string(provisioner.HTTP_01), string(provisioner.TLS_ALPN_01), string(provisioner.DNS_01)}
}

// Validate checks the configuration, without reading files; maxTTL is the longest
// life that the authority gives to anybody.
func (c Config) Validate(maxTTL time.Duration) error {
	if c.Listen == "" {
		if c.URL != "" || len(c.Names) > 0 || len(c.ExternalAccounts) > 0 {
			return errors.New("acme: it is configured, and has no listen")
		}
		return nil
	}
	var errs []error
	if err := listen.Valid(c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("acme.listen: %w", err))
	}
	if _, err := hostOf(c.URL); err != nil {
		errs = append(errs, fmt.Errorf("acme.url: %w", err))
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("acme: cert_file and key_file go together"))
	}
	if c.CertFile == "" && !isHostname(c.hostname()) {
		errs = append(errs, errors.New("acme.url: the authority issues its own server certificate for a DNS name; for an address give cert_file and key_file"))
	}
	allowed, err := parsePatterns(c.Names)
	if err != nil {
		errs = append(errs, fmt.Errorf("acme.names: %w", err))
	} else if len(allowed) == 0 {
		errs = append(errs, errors.New("acme.names: say which DNS names certificates may have"))
	}
	if ttl := c.TTL.D(); ttl < minTTL || ttl > max(maxTTL, minTTL) {
		errs = append(errs, fmt.Errorf("acme.ttl: %s is outside %s to max_ttl, %s", c.TTL, minTTL, maxTTL))
	}
	if _, err := parseNetworks(c.Networks); err != nil {
		errs = append(errs, fmt.Errorf("acme.networks: %w", err))
	}
	if c.Resolver != "" {
		if _, err := netip.ParseAddrPort(c.Resolver); err != nil {
			errs = append(errs, fmt.Errorf("acme.resolver: %q is not address:port", c.Resolver))
		}
	}
	return errors.Join(append(errs, c.validateChallenges(), c.validateAccounts(allowed))...)
}

func (c Config) validateChallenges() error {
	var errs []error
	for _, ch := range c.Challenges {
		if !slices.Contains(challenges(), ch) {
			errs = append(errs, fmt.Errorf("acme.challenges: %q: want one of %s", ch, strings.Join(challenges(), ", ")))
		}
	}
	for key, port := range map[string]int{"http_port": c.HTTPPort, "tls_port": c.TLSPort} {
		if port < 1 || port > 65535 {
			errs = append(errs, fmt.Errorf("acme.%s: %d is no port", key, port))
		}
	}
	return errors.Join(errs...)
}

func (c Config) validateAccounts(allowed patterns) error {
	var errs []error
	if c.RequireExternalAccount && len(c.ExternalAccounts) == 0 {
		errs = append(errs, errors.New("acme.external_accounts: name at least one, or set require_external_account to false and let everybody who reaches the address make an account"))
	}
	if !c.RequireExternalAccount && len(c.ExternalAccounts) > 0 {
		errs = append(errs, errors.New("acme.external_accounts: they are not asked for as long as require_external_account is false"))
	}
	seen := map[string]bool{}
	for i, e := range c.ExternalAccounts {
		at := fmt.Sprintf("acme.external_accounts[%d]", i)
		switch names, err := parsePatterns(e.Names); {
		case !isID(e.ID):
			errs = append(errs, fmt.Errorf("%s.id: %q: want 1 to 64 letters, digits, dots, hyphens and underscores", at, e.ID))
		case seen[e.ID]:
			errs = append(errs, fmt.Errorf("%s.id: %q is there twice", at, e.ID))
		case e.KeyFile == "":
			errs = append(errs, fmt.Errorf("%s.key_file: name the file with its key", at))
		case err != nil:
			errs = append(errs, fmt.Errorf("%s.names: %w", at, err))
		default:
			for _, n := range names {
				if !allowed.covers(n) {
					errs = append(errs, fmt.Errorf("%s.names: %q is not within acme.names", at, n))
				}
			}
		}
		seen[e.ID] = true
	}
	return errors.Join(errs...)
}

// hostOf gives the host, with the port if there is one, of the URL that clients use.
func hostOf(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return "", errors.New("say where clients find it, https://host or https://host:port")
	case err != nil:
		return "", fmt.Errorf("%q is no URL", text)
	case u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("%q: want https://host or https://host:port", text)
	}
	if u.Port() == "443" {
		return strings.TrimSuffix(strings.ToLower(u.Host), ":443"), nil
	}
	return strings.ToLower(u.Host), nil
}

// hostname is the host of the URL without its port; empty if there is none.
func (c Config) hostname() string {
	host, err := hostOf(c.URL)
	if err != nil {
		return ""
	}
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return host
}

func isID(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune(".-_", rune(c)) {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// external is an external account, read.
type external struct {
	key   []byte
	names patterns
}

func readExternal(accounts []ExternalAccount, all patterns) (map[string]external, error) {
	out := make(map[string]external, len(accounts))
	for _, a := range accounts {
		key, err := readKey(a.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("acme: key of the external account %s: %w", a.ID, err)
		}
		names := all
		if len(a.Names) > 0 {
			if names, err = parsePatterns(a.Names); err != nil {
				return nil, fmt.Errorf("acme: external account %s: %w", a.ID, err)
			}
		}
		out[a.ID] = external{key: key, names: names}
	}
	return out, nil
}

// readKey reads a key that clients of an external account have too; no error holds
// it.
func readKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode(); !mode.IsRegular() || mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %s, so that others may have read it; make another key, in a file of mode 0600", path, mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, 2*maxKey))
	if err != nil {
		return nil, err
	}
	key, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(strings.TrimSpace(string(data)), "="))
	if err != nil || len(key) < minKey || len(key) > maxKey {
		return nil, fmt.Errorf("%s: want %d to %d bytes in base64url on one line (openssl rand 32 | basenc --base64url)", path, minKey, maxKey)
	}
	return key, nil
}

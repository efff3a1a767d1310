package proxyconfig

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"time"
)

// Secret is a certificate, or what vouches for others', as Envoy has it. Its Config is
// left out: Envoy hides keys in it, and nobody relies on that.
type Secret struct {
	resource
	Kind string `json:"kind"`
	// Serial, NotBefore, NotAfter and Names are those of the first certificate.
	Serial    string    `json:"serial,omitempty"`
	Subject   string    `json:"subject,omitempty"`
	NotBefore time.Time `json:"notBefore,omitzero"`
	NotAfter  time.Time `json:"notAfter,omitzero"`
	Names     []string  `json:"names,omitempty"`
	// Certificates is how many there are.
	Certificates int `json:"certificates"`
}

// Kinds of secrets.
const (
	chainKind   = "certificate chain"
	trustedKind = "trusted certificates"
	otherKind   = "other"
)

func (d *Dump) secrets(raw json.RawMessage) error {
	var in struct {
		Static  []versioned `json:"static_secrets"`
		Active  []versioned `json:"dynamic_active_secrets"`
		Warming []versioned `json:"dynamic_warming_secrets"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return err
	}
	for state, all := range each(in.Active, in.Warming, in.Static) {
		for _, v := range all {
			s, err := secretOf(v, state)
			if err != nil {
				return fmt.Errorf("secret %s: %w", v.Name, err)
			}
			d.Secrets = append(d.Secrets, s)
		}
	}
	return nil
}

// inline is a field that Envoy gives the content of in base64.
type inline struct {
	Bytes  []byte `json:"inline_bytes"`
	String string `json:"inline_string"`
}

// certificates gives those of its content that can be read.
func (i *inline) certificates() (out []*x509.Certificate) {
	rest := i.Bytes
	if len(rest) == 0 {
		rest = []byte(i.String)
	}
	for {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return out
		}
		if c, err := x509.ParseCertificate(b.Bytes); err == nil {
			out = append(out, c)
		}
	}
}

func secretOf(v versioned, state string) (Secret, error) {
	out := Secret{resource: resource{Name: v.Name, Version: v.Version, State: state, Error: v.Error.text()}, Kind: otherKind}
	if v.Secret == nil { // it has not come
		return out, nil
	}
	var in struct {
		Chain *struct {
			Certificates inline `json:"certificate_chain"`
		} `json:"tls_certificate"`
		Trusted *struct {
			Roots  inline `json:"trusted_ca"`
			Custom *struct {
				Config struct {
					Domains []struct {
						Bundle inline `json:"trust_bundle"`
					} `json:"trust_domains"`
				} `json:"typed_config"`
			} `json:"custom_validator_config"`
		} `json:"validation_context"`
	}
	if err := json.Unmarshal(v.Secret, &in); err != nil {
		return out, err
	}
	var all []*x509.Certificate
	switch {
	case in.Chain != nil:
		out.Kind, all = chainKind, in.Chain.Certificates.certificates()
	case in.Trusted != nil:
		out.Kind, all = trustedKind, in.Trusted.Roots.certificates()
		if c := in.Trusted.Custom; c != nil {
			for i := range c.Config.Domains {
				all = append(all, c.Config.Domains[i].Bundle.certificates()...)
			}
		}
	}
	out.Certificates = len(all)
	if len(all) == 0 {
		return out, nil
	}
	first := all[0]
	out.Serial, out.Subject, out.NotBefore, out.NotAfter = first.SerialNumber.Text(16), first.Subject.String(), first.NotBefore, first.NotAfter
	for _, u := range first.URIs {
		out.Names = append(out.Names, u.String())
	}
	out.Names = append(out.Names, first.DNSNames...)
	return out, nil
}

package meshdir

import (
	"fmt"
	"strings"
	"testing"
)

// TestCredentialNamespaces: a gateway takes secrets of the namespace that it runs in and
// of the Gateway's, however they are named, and no others, be they there or not.
func TestCredentialNamespaces(t *testing.T) {
	files := exampleFiles(t)
	example := string(files["secret.yml"])
	secret := func(namespace, name string) string {
		text := strings.Replace(example, "namespace: istio-system", "namespace: "+namespace, 1)
		return "---\n" + strings.Replace(text, "name: bookinfo-cert", "name: "+name, 1) + "  ca.crt: |\n" + certificateOf(example)
	}
	secrets := secret("istio-system", "root") + secret("team", "own") + secret("other", "theirs") + secret("other", "own")
	for _, c := range []struct{ name, want string }{
		{"root", ""},
		{"own", ""},
		{"istio-system/root", ""},
		{"team/own", ""},
		{"kubernetes://root", ""},
		{"kubernetes://team/own", ""},
		{"other/theirs", "the secret is of namespace other: a gateway takes those of its own namespace and of the Gateway's"},
		{"kubernetes://other/theirs", "the secret is of namespace other"},
		{"other/missing", "the secret is of namespace other"},
		{"theirs", "there is no Secret istio-system/theirs or team/theirs"},
		{"istio-system/own", "there is no Secret istio-system/own:"},
		{"team/root", "there is no Secret team/root:"},
	} {
		for field, form := range map[string]string{
			"credentialName":       "{mode: SIMPLE, credentialName: '%s'}",
			"credentialNames[0]":   "{mode: SIMPLE, credentialNames: ['%s']}",
			"caCertCredentialName": "{mode: MUTUAL, credentialName: root, caCertCredentialName: '%s'}",
		} {
			gateway := "---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: team}\nspec:\n  selector: {app: g}\n  servers:\n" +
				"  - port: {number: 443, name: https, protocol: HTTPS}\n    hosts: ['*']\n    tls: " + fmt.Sprintf(form, c.name) + "\n"
			_, problems := Parse(map[string][]byte{"a.yaml": []byte(secrets), "g.yaml": []byte(gateway)}, nil, Options{})
			errs := Errors(problems)
			at := "spec.servers[0].tls." + field
			switch {
			case c.want == "" && len(errs) > 0:
				t.Errorf("%s %q: %v", field, c.name, errs)
			case c.want == "":
			case len(errs) != 1 || errs[0].Field != at || errs[0].Line != 10 || !strings.Contains(errs[0].Message, c.want):
				t.Errorf("%s %q: %v, want %s at %s", field, c.name, errs, c.want, at)
			}
		}
	}
}

// certificateOf is the certificate of a secret's text, with its indent.
func certificateOf(secret string) string {
	const begin, end = "    -----BEGIN CERTIFICATE-----\n", "    -----END CERTIFICATE-----\n"
	from, to := strings.Index(secret, begin), strings.Index(secret, end)
	return secret[from : to+len(end)]
}

package model

import "slices"

// PostQuantumGroup is the group of TLS 1.3 by which keys are agreed on so that who
// records a connection today cannot read it with a quantum computer later
// (X25519 and ML-KEM-768 together). Mesh mTLS prefers it; alone in
// MeshConfig.meshMTLS.ecdhCurves it is required.
const PostQuantumGroup = "X25519MLKEM768"

// SystemAuthorities in place of the file of an authority means those that the machine
// trusts.
const SystemAuthorities = "system"

// CipherSuites gives those of suites that Envoys know, each once. One that they do
// not know would have them refuse the whole listener or cluster. What does not begin
// like a name ("-ALL") is not looked at.
func CipherSuites(suites []string) []string {
	var out []string
	for _, s := range suites {
		named := s != "" && s != "ALL" && (s[0] >= '0' && s[0] <= '9' || s[0] >= 'a' && s[0] <= 'z' || s[0] >= 'A' && s[0] <= 'Z')
		if (!named || slices.Contains(cipherSuites(), s)) && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// cipherSuites are the names of TLS up to 1.2 that BoringSSL has, without those of
// shared secrets.
func cipherSuites() []string {
	return []string{
		"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384",
		"ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305", "ECDHE-ECDSA-AES128-SHA", "ECDHE-RSA-AES128-SHA",
		"ECDHE-ECDSA-AES256-SHA", "ECDHE-RSA-AES256-SHA", "AES128-GCM-SHA256", "AES256-GCM-SHA384", "AES128-SHA", "AES256-SHA", "DES-CBC3-SHA",
	}
}

// Curves gives those of curves that every supported Envoy knows, each once (P-224
// is no longer one).
func Curves(curves []string) []string {
	var out []string
	for _, c := range curves {
		if slices.Contains([]string{"P-256", "P-384", "P-521", "X25519", PostQuantumGroup}, c) && !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

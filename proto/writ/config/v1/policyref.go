package configpb

import "strings"

// fingerprintMark is between the name of a policy and its fingerprint; no name has it.
const fingerprintMark = "@"

// PolicyRef is how proxies name a RegoPolicy or a QuotaPolicy with the content that their routes go with:
// "<namespace>/<name>@<fingerprint>". A policy without a fingerprint is meant by its name
// alone, whatever its content.
func PolicyRef(namespace, name, fingerprint string) string {
	ref := namespace + "/" + name
	if fingerprint != "" {
		ref += fingerprintMark + fingerprint
	}
	return ref
}

// Ref is how proxies name this content.
func (x *RegoPolicy) Ref() string {
	return PolicyRef(x.GetNamespace(), x.GetName(), x.GetFingerprint())
}

// Ref is how proxies name this content.
func (x *QuotaPolicy) Ref() string {
	return PolicyRef(x.GetNamespace(), x.GetName(), x.GetFingerprint())
}

// PolicyName is the "<namespace>/<name>" of a ref.
func PolicyName(ref string) string {
	name, _, _ := strings.Cut(ref, fingerprintMark)
	return name
}

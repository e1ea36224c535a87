"""The worst attack on a defence, looked for among families of attacks and their parameters."""
